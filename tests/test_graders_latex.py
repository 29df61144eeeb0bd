# ruff: noqa: E501 (tables)
r"""The LaTeX grader: equal mathematics passes, nothing else, and always in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.latex import LatexGrader, final_formula, sides

EQUAL = [  # (reference, answer)
    ("18", "18"), ("18", "18.0"), ("18", "18.00"), ("18", "+18"), ("18", "x=18"), ("18", r"18\%"),
    ("18", r"18\text{ cm}"), ("18", r"18\text{ cm}^2"), ("18", r"18\,\text{dollars}"),
    ("90", r"90^\circ"), (r"90^\circ", "90"), (r"90^{\circ}", "90"), ("5", r"\$5"), ("5", "5."),
    ("1234", "1,234"), ("1234", r"1{,}234"), (r"11,\! 111,\! 100", "11111100"), ("1000", "10^3"),
    (r"\frac{1}{2}", "0.5"), ("0.5", r"\frac12"), (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "1/2"), (r"\frac{14}{3}", r"4\frac{2}{3}"), (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"\frac{3}{4}", r"\frac{6}{8}"), (r"\frac{1}{3}", r"\tfrac{1}{3}"), ("-5", r"\left(-5\right)"),
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), ("4", "2+2"),
    ("4", r"\sqrt{16}"), ("6", "3!"), ("1024", "2^{10}"), ("10", r"\binom{5}{2}"), ("26000", "513^2-487^2"),
    (r"3\sqrt{13}", r"\sqrt{117}"), (r"\pi", r"\pi"), (r"2\pi", r"\pi\cdot 2"),
    (r"\frac{\pi}{2}", r"\pi/2"), (r"x^2+2x+1", r"(x+1)^2"), ("x+1", "1+x"), ("2x", r"x\cdot 2"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"), ("(1,2)", "( 1 , 2 )"),
    ("(1,2)", r"\left(1,2\right)"), ("1,2", "2,1"), ("1,-2", "-2, 1"), (r"\{1,2\}", r"\{2,1\}"),
    ("[0,1)", "[0, 1)"), (r"(-\infty, 2)", r"(-\infty,2)"), (r"\text{Evelyn}", r"\text{Evelyn}"),
    (r"\text{Evelyn}", "Evelyn"), (r"\text{Evelyn}", r"\text{evelyn}"), (r"\text{(C)}", r"\text{C}"),
    (r"\text{even}", r"\textbf{even}"), ("x > 1", "x>1"), (r"y = 2x + 3", "y=2x+3"), ("e^2", "e^{2}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("3i", "3i"),
    ("1+2i", "2i+1"), ("4210_5", "4210_{5}"), ("-1", "−1"), (r"\frac{9}{7}", r"\frac{9}{7}."),
    (r"\log_2 8", "3"), (r"\sqrt{16}", "4"), ("3i", r"3\mathrm{i}"), ("1+2i", r"1+2\mathrm{i}"),
    ("(2,100)", "(2, 100)"), ("(2,100)", r"\left(2, 100\right)"), ("(2,100)", "(2, 10^2)"),
    ("[1,2]", r"1\le x\le 2"), ("(1,2)", "1<x<2"), ("1,2", r"x=1\text{ or }x=2"), ("1,2", "x=1, x=2"),
    ("1,2", r"1\text{ or }2"), ("1,2", "1 and 2"), ("3,5,7", r"3, 5,\text{ and }7"), ("-2,1", r"x=-2\text{ and }x=1"),
    ("18", "18 ways"), (r"288 \pi", r"288\pi\text{ cm}^3"), (r"(0,1)", r"0<x<1"),
    (r"\frac{1}{3}", r"0.\overline{3}"), ("pq", r"p\cdot q"),
    ("18", "18 = x"), ("18", r"17 + 1 = 18"), ("18", "AB = 18"), (r"\text{Monday}", r"\textit{Monday}"),
    ("y=2x+3", "2x+3"), ("2x+3", "y=2x+3"), ("x=5", "5"), ("12", "12_{10}"), ("18", r"18\ "), ("2", r"\{2\}"),
    (r"5\text{ km}", r"5\,\mathrm{km}"), (r"5\text{ km}", r"5\text{ kilometers}"), (r"5\text{ km}", "5"), ("5", "5 km"),
    (r"2\sqrt{3}", r"\sqrt{12} = 2\sqrt{3}"), (r"2\sqrt{3}", r"AB = 2\sqrt{3}"), ("x > 1", r"(1,\infty)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\binom{5}{2}", "10"), (r"|{-3}|", "3"), ("2^{10}", "1024"),
    ("5", r"\angle ABC=5"), ("5", r"\overline{AB}=5"), ("5", "f(2)=5"), ("5", "f'(x)=5"), ("5", "A=lw=5"),
    ("5", r"P(A\cap B)=5"), ("5", "a_{10}=5"), ("5", "[ABC]=5"), ("5", r"m\angle A=5"), ("5", "n=3+2=5"),
    ("5", "|AB|=5"), ("5", r"\mathbb{E}[X]=5"), ("5", r"\frac{AB}{CD}=5"), (r"\frac{1+\sqrt{5}}{2}", r"\frac{1+\sqrt{5}}2"), (r"\frac{x}{2}", r"\frac x2"),
    (r"\frac{a}{b}", r"\frac ab"), (r"\frac{3}{4}", r"\left.\frac{3}{4}\right."),
    (r"\frac{3}{4}", r"\frac{3}{4}\text{ or }0.75"), ("2516_8", r"2516_{\text{eight}}"), ("18", r"\underline{18}"),
]  # fmt: skip
UNEQUAL = [
    ("18", "17"), ("18", "-18"), ("18", "1.8"), ("18", "180"), ("18", "18.01"), ("18", "18x"),
    ("18", "17 or 18"), ("18", "17, 18"), ("18", "18, 19"), ("18", r"17 \text{ or } 18"),
    ("18", "17=18"), ("18", "18=17"), ("18", "<18"), ("18", r"\neq 18"), ("18", r"\text{not } 18"),
    ("0.18", r"18\%"), (r"\frac{1}{2}", r"50\%"), (r"\frac{1}{3}", "0.333333"), ("2", r"2\pi"),
    (r"\frac{1}{3}", "0.33333333"), (r"\pi", "3.14"), (r"\pi", "3.14159265"), ("e", "2.718281828"),
    (r"\frac{1}{2}", r"\frac{2}{1}"), (r"\frac{1}{2}", "2"), (r"\sqrt{2}", "1.41421356"),
    (r"2\sqrt{3}", r"3\sqrt{2}"), (r"\sqrt{2}", "2"), (r"x^2", "x"), ("2x", "2y"), ("2a", "2b"),
    ("2a", "2"), ("x+1", "x-1"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2)", r"\{1,2\}"),
    ("[0,1)", "[0,1]"), ("1,2", "1"), ("1,2", "1,2,3"), ("1,2,3", "1,2"), (r"\{1,2\}", "(1,2)"),
    (r"\text{Evelyn}", "Carla"), (r"\text{Evelyn}", "nylevE"), (r"\text{odd}", r"\text{even}"),
    (r"\text{(C)}", r"\text{(B)}"), (r"\text{Evelyn}", r"\text{Evelyn or Carla}"), ("abc", "cab"),
    ("x > 1", "x < 1"), ("x > 1", r"x \geq 1"), ("1+2i", "1-2i"), ("i", "1"), ("3i", "3"),
    ("10_2", "10_3"), ("1000000", "1000000.4"), ("3", "3.0000001"), ("12", "1 2"), ("7", r"\infty"),
    ("1234", "1, 234"),
    ("5", "2x=5"), ("5", "x^2 = 5"), ("5", "x+1=5"), ("5", "-x=5"), ("5", "6-x=5"), ("5", r"\sqrt{x}=5"),
    ("5", "1/x=5"), ("5", r"\sin x=5"), ("5", "x<5=5"), ("5", r"x\neq4=5"), ("5", "x!=5"), ("5", "|x|=5"),
    (r"\frac{3}{4}", r"1-p=\frac{3}{4}"), ("x^2+1", "2y=x^2+1"), ("2516_8", r"2516_{\text{nine}}"),
    (r"\frac{3}{4}", r"\frac{3}{4}\text{ or }0.7"), ("3", r"3\text{rd}"), ("5", r"5\text{th}"),
    ("5", r"5\text{ times pi}"), ("5", r"5\text{ trillionths}"),
    ("5!", "5"), ("100000000", "100000000!"), (r"\frac{1}{0}", r"\frac{2}{0}"), ("0", "10^{-20}"),
    ("18", ""), ("18", r"\,"), ("18", "?"), ("18", r"\text{eighteen}"), ("18", r"\frac{18}{"),
    ("18", "{" * 500), ("18", r"\left" * 100), ("18", "1" * 900), ("18", r"\undefined{18}{3}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    # what stands behind the number
    ("18", r"18\text{ or 17}"), ("18", r"18\text{ and 6}"), ("18", r"18\text{ is wrong}"), ("18", r"18\text{ million}"),
    ("18", r"18\text{ or more}"), ("18", r"18\text{ squared}"), ("18", r"18\mbox{ or six}"), ("3", r"3\mathrm{i}"),
    ("2", r"2\mathrm{e}"), ("2", r"2\text{x}"), ("3", r"1+2\mathrm{i}"), ("183", r"18\mathrm{e}3"),
    (r"5\text{ km}", r"5\text{ cm}"), (r"5\text{ hours}", r"5\text{ minutes}"), ("18", r"18^{\text{th}}"),
    ("6+9i", r"6+9i\mathrm{i}"), (r"2\pi", r"2\pi\text{x}"), (r"(2,\infty)", r"(2,\infty)\text{x}"), (r"\cot x", r"\cot x\text{x}"),
    ("(1,2)", r"(1,2)\text{ or 17}"), (r"2\sqrt{3}", r"2\sqrt{3}\text{ million}"), ("18", r"18\text{ and Carla}"),
    ("2", "2 xy"), (r"145^\circ", r"145\text{ radians}"),
    # several values
    (r"\pi", r"$e$ $\pi$"), (r"\sqrt{5}", r"1$ $\sqrt{5}"), ("18", r"17 \Rightarrow 18"), ("18", r"17 \to 18"),
    ("18", r"18 \approx 17"), ("18", r"18\\17"), ("18", r"18.\overline{9}"), ("18", r"18\ldots"), ("10", "10⁶"), ("8", "١8"),
    ("1,2", r"1,2,\ldots"), ("2", "2,2"), ("(1,2)", "1,2"), ("1,2", "(1,2)"), ("1,2", "1,2,2"), ("(1,2)", "x=1, y=2"),
    ("1817", r"18\quad 17"), ("34", r"3\;4"), ("34", r"3\ 4"), ("1817", r"18\%17"), ("18", r"1\,8"), (r"\pi", r"\pi\quad e"),
    ("(2,100)", "2100"), ("2100", "(2,100)"), ("x > 1", "x>1, x<0"), (r"\pi", r"\pi\text{ or }e"), ("2", "x=18, y=2"),
    # another thing
    ("1010", "1010_2"), ("1010_2", "1010"), ("12", "12_{8}"), ("A4_{16}", "A4"), ("E", "e"), ("e", "E"), ("x", "X"),
    (r"\angle ABC", r"\angle ACB"), ("AB", "BA"), (r"\sin 30^\circ", r"\sin 30"), ("3:4", r"\frac34"), (r"\frac{3}{4}", "3:4"),
    ("x=5", "y=5"), ("f(x)=x+1", "g(x)=x+1"), (r"\sqrt{2}", "1.414213562373095"), (r"\pi", "3.141592653589793"),
    (r"2\sqrt{3}", r"3\sqrt{2} = 2\sqrt{3}"), ("18", "20-1=18"), ("-2", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
]  # fmt: skip
MORE_EQUAL = [  # spellings beside covered ones, each read whole
    ("14-i", "14.0-1.0i"), ("5", r"5\text{~cm}"), ("5", r"5~\text{cm}"), (r"\frac{1}{72}", r"\frac1{72}"),
    (r"\frac{270}{7}", r"\frac{270}7\text{ degrees}"), (r"\log_{2} 8", r"\log_28"), ("16", "１６"), ("18", r"18。"),
    ("4", r"\sqrt[3]{64}"), (r"\sqrt[3]{2}", r"\sqrt[3]2"), ("14-i", "14.0-1.0i"),
    ("5", r"5 \mathrm{~cm}"), (r"(2,\infty)", "x>2"), (r"(2,\infty)", "2<x"),
    (r"[2,\infty)", r"x\ge 2"), (r"(-\infty,2]", r"x\leq2"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1\text{ or }x>2"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"), ("x^2-1", "(x-1)(x+1)"),
    (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"), (r"\pm 3", "3,-3"),
    (r"\frac{1}{2}", r"\sin 30^\circ"), (r"\sqrt{2}/2", r"\frac{\sqrt2}{2}"), ("x<1", "1>x"),
    (r"x\in[1,2]", "[1,2]"), ("[1,2]", r"x\in[1,2]"), ("2(3+x)", "6+2x"), ("y=2x+3", "2x-y+3=0"),
    (r"\{1,2\}", "1, 2"), (r"\frac{1}{2006!}", r"\frac{1}{2006 \cdot 2005!}"),
    (r"2^{2007}", r"2\cdot 2^{2006}"), (r"\frac{1}{2^{2006}}", r"2^{-2006}"),
    (r"\tan^2 x", r"\frac{\sin^2 x}{\cos^2 x}"), (r"\frac{x+2}{7}", r"\frac{1}{7}x+\frac{2}{7}"),
    (r"\mathbb{R}", r"(-\infty,\infty)"), (r"\emptyset", r"\varnothing"), ("3:4", "3 : 4"),
    (r"\begin{pmatrix}1/2\\3\end{pmatrix}", r"\begin{pmatrix}0.5\\3\end{pmatrix}"),
    (r"3\sqrt{2}", r"\sqrt{18}"), (r"\sqrt[4]{8}", r"2^{3/4}"), ("1,000,000", r"10^6"),
    (r"2.5\pi", r"\frac{5\pi}{2}"), ("-x+3", "3-x"), (r"2\frac12 x", r"\frac{5x}{2}"),
    (r"\frac{-1}{3}", r"-\frac13"), ("(0.5, 2)", r"(\frac12, 2)"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt6}"), (r"\frac{1}{\sqrt{2}-1}", r"1+\sqrt2"),
    (r"e^{i\pi/2}", "i"), ("-1", "i^2"),
    ("5", r"5\text{cm}"), ("5", r"5\mathrm{cm}"), ("5", r"5~\text{cm}"), ("5", r"5\,\mathrm{cm}"),
    ("5", "5 cm"), ("5", r"5\ \text{cm}"), ("5", r"5\;\mathrm{cm}"), ("5", r"5 \mathrm{~cm}^2"),
    ("5", r"5\mathrm{~km/h}"), ("10", r"10\text{ m/s}"), ("5", r"5\mathrm{\,cm}"), ("2,-2", r"x=\pm 2"),
    (r"\{-2,2\}", r"\pm2"), (r"[2,5)", r"2\leq x<5"), (r"[2,5)", r"5>x\ge 2"),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}"), ("3.50", r"\frac72"), ("0.\\overline{3}", "1/3"),
    (r"\text{(A)}", "A"), (r"\text{(A)}", "(A)"), ("A", r"\text{A}"), ("10!", "3628800"),
    (r"\binom{10}{3}", "120"), (r"\log_{10}100", "2"), (r"(-\infty,2)", "(−∞,2)"),
    (r"(-\infty,2]", r"\left(-\infty,2\right]"), (r"(2,\infty)", r"(2,+\infty)"),
    (r"(2,\infty)", r"\{x\mid x>2\}"), (r"(2,\infty)", r"x\in(2,\infty)"), ("14-i", r"14-1i"),
    ("14-i", "14 - i"), ("3+0.5i", r"3+\frac12 i"), ("3+0.5i", r"3+\frac{i}{2}"), (r"\sqrt[3]{2}", "2^{1/3}"),
    (r"\sqrt[3]{2}", r"\sqrt[3] 2"), (r"\sqrt[3]{2}", r"\sqrt[{3}]{2}"), (r"\sqrt{2}", r"\sqrt 2"),
    (r"5\sqrt{2}", r"5 \cdot \sqrt 2"), (r"\frac{3}{4}", r"\frac 3 4"), (r"\frac{3}{4}", r"\frac{3} {4}"),
    (r"\frac{a}{b}", r"a/b"), ("x^2", "x²"), ("2x", "2 x"), (r"x^2+2x", r"x(x+2)"),
    (r"x\ge 3", r"[3,\infty)"), ("x=3", "3"), ("3", "x = 3"), (r"3\text{ or }4", "4,3"),
    ("1,2,3", r"1,\,2,\,3"), (r"\frac{1}{2}", r".5"), (r"2.0\times 10^{3}", "2000"), (r"2\times10^3", "2000"),
    (r"5.0", "5"), ("12,345", r"12{,}345"), ("1:2", "1 : 2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
    (r"\left\{1,2\right\}", r"\{2, 1\}"), (r"-\frac{1}{2}", r"\frac{1}{-2}"),
    (r"\frac{x+1}{2}", r"\frac{1+x}{2}"), (r"y=x+1", "y = 1 + x"), (r"x=1,\;x=2", "x=2,x=1"),
    ("5", r"\text{5 cm}"), ("5", r"{\bf 5}"), ("5", r"\text{Area} = 5"), ("5", r"\text{The answer is } 5"), ("5", "5°"), (r"60^\circ", "60°"), ("5", r"5\degree"),
    ("5", r"\dbinom{5}{4}"), ("5", r"{5 \choose 1}"), (r"\frac34", r"{3 \over 4}"), (r"\frac34", r"\Pr = \frac34"), (r"3\sqrt{2}", "3√2"), (r"\sqrt{12}", "√12"), (r"\ln 2", r"\log_e 2"),
    ("(1,2)", "(x,y) = (1,2)"), ("(1,2)", r"\bigl(1,2\bigr)"), ("[1,2)", r"1\leqslant x<2"), ("x>2", r"x \gt 2"), (r"(-\infty,\infty)", r"\mathbb R"), ("1,2", "x_1=1, x_2=2"),
    (r"\{1,2,3\}", r"\lbrace 1,2,3 \rbrace"), (r"\{1,2,3\}", "{1,2,3}"), (r"\emptyset", r"\{\}"), ("1,000,000", r"1\text{ million}"), (r"0.\overline{6}", r"0.\bar{6}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left(\begin{array}{cc}1&2\\3&4\end{array}\right)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}"),
    ("B", r"\text{(B)}"), ("4:3", r"4\colon 3"), ("11_2", "(11)_2"), (r"\frac{\pi}{2}", r"\frac\pi2"),
    ("6-5i", "-5i+6"), (r"\frac{1}{1001!}", r"\frac{1}{1001!}"), (r"\dfrac{2006!}{2005!}", "2006"),
]  # fmt: skip
MORE_UNEQUAL = [  # a part of them, or their first decimals, would be equal
    ("4", r"4\sqrt(2)"), (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{1}{2^{2007}}", r"\frac{1}{2^{2006}}"), (r"10^{10^{10}}", r"10^{10^{11}}"),
    ("1", r"\frac{10^{10^{10}}}{10^{10^{10}}+1}"), ("0", r"\frac{1}{10^{10^{10}}}"),
    ("0", r"e^{-10000}"), ("1", r"1+10^{-40}"), ("6", "2(3)+x"), ("5", "2(3)"),
    (r"(2,\infty)", r"x\ge 2"), (r"(2,\infty)", "x<2"), (r"(2,\infty)", "x>3"),
    ("(1,2)", r"1<x\le 2"), ("12", "12_5"), ("2x", "2x'"), (r"\frac{1}{2x}", "1/2x+0"),
    (r"\frac{x}{2}", "1/2x"), (r"\pm 3", "3"), ("3", r"\pm 3"),
    (r"\sqrt{2}", r"\sqrt{2}\approx 1.41"), (r"\sqrt{2}", r"\sqrt2 3"), ("x+1", r"x+1\ldots"),
    (r"\pi", r"\frac{22}{7}"), (r"\pi", r"\frac{245850922}{78256779}"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{10}"), ("100!", "100!+1"), ("(99999!)!", "(99999!)!+1"),
    ("2^{100000}", "2^{100000}+1"), (r"\sin 1", r"\sin 1^\circ"), ("4", r"4\sqrt"),
    ("4", r"\frac{4}"), ("4", "4+"), ("4", "4^"), ("4", r"4\cdot"), ("4", r"4\left("), ("4", "4 4"),
    ("4", "4|"), ("4", "|4"), ("4", r"4\text{x}"), ("4", r"4_2"), ("4", r"4\%5"), ("4", r"4;5"),
    ("4", "4:1"), ("4", r"4\&5"), ("4", r"4\\5"), ("4", r"4\cong 5"), ("4", r"4\in\mathbb{Z}"),
    ("4", r"4\to 5"), ("4", r"4\mid 8"), ("4", r"\lfloor 4.5 \rfloor 1"), ("4", r"4\bmod 5"),
    ("\\sqrt{5}", "\\sqrt{5}i"), ("0.1+0.2x", "0.3x"), ("0.3", "0.1+0.2000000001"), ("x^2", "x^2!"),
    ("a", "A"), ("(1,2,3)", "(1,2)"), ("[1,2]", "(1,2]"), (r"(1,2)\cup(3,4)", "(1,2),(3,5)"),
    (r"\frac{3}{4}", "3/4/1x"), ("2", "1+1=3"),
    ("5", r"5\text{ or }6"), ("5", r"5\mathrm{x}"), (r"[2,5)", r"2\leq x\leq5"), (r"(2,\infty)", r"x>-2"),
    ("14-i", "14+i"), ("14-i", "14.0-1.1i"), ("14-i", "14"), (r"\sqrt[3]{2}", r"\sqrt{2}"),
    (r"\sqrt[3]{2}", r"\sqrt 3 2"), (r"\sqrt[3]{2}", r"3\sqrt{2}"), (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"0", r"\frac{1}{2006!}"), ("1", r"\frac{2006!+1}{2006!}"),
    (r"\frac{1}{2^{2007}}", r"\frac{1}{2^{2006}}"), ("0", "2^{-5000}"), (r"\frac{1}{10^{100}}", "0"),
    (r"(10^{10})!", r"(10^{10})!+1"), ("9^{9^{9}}", "9^{9^{8}}"), (r"9^{9^{9^9}}", "1"), ("4", r"4\sqrt{}"),
    ("4", r"4\sqrt(1)(2)"), ("4", r"4\frac12"), ("4", "4("), ("4", r"4 \text{or} 5"), ("1,2", "1,2,"),
    ("2", r"2x=4"), ("2", "4=2x"), ("2", r"2\ne 3"), ("2", r"x\ne 2"), ("3", r"|x-3|"), ("3", r"f(3)"),
    ("3", r"3\cdot"), ("3", "3^{}"), ("3", r"3^{0.0}"), ("18", r"1 8"), ("6", "3!!"),
    (r"\pi", "3.14159265358979323846"), (r"\sqrt{2}", "1.41421356237309504880168872420969807856967187537694"),
    ("e^{20}-e^{20}+1", "1.0000000000000000001"),
    ("5", "5..."), ("5", "5…"), ("5", r"5\text{?}"), (r"(-\infty,1)\cup(2,\infty)", r"x<1\text{ and }x>2"), ("5", r"\text{not } = 5"), ("(1,2)", "(x,y) = (2,1)"), ("(1,2)", "(y,x) = (1,2)"),
    ("12", "√12"), (r"3\sqrt{2}", "3√20"), ("1", r"1\text{ million}"), (r"0.\overline{6}", r"0.6\bar{7}"), ("5,6", r"{5 \choose 6}"), ("x_1=1,x_2=2", "x_1=2,x_2=3"),
]  # fmt: skip
HOSTILE = [
    r"10^{10^{10}}",
    r"9^{9^{9^9}}",
    r"((99999!)!)!",
]
TEXTS = [  # (text, the formula that counts)
    (r"\boxed{17} no wait \boxed{18}", "18"),
    (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
    (r"\boxed{x^{2^{3}}}", "x^{2^{3}}"),
    (r"\boxed{18", None),
    (r"\boxed{17} and \boxed{18", None),
    (r"\boxed{}", None),
    ("The answer is $x=5$.", "x=5"),
    (r"The answer is \(x=5\).", "x=5"),
    ("The answer is: 5", "5"),
    ("The answer is not $5$.", None),
    (r"\boxed{5}. The answer is correct.", "5"),
    (r"\boxed{1}, \boxed{2}", "1, 2"),
    ("We get\n$x = 5$", "5"),
    ("The answer is:\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
    ("The answer is\n$$\n\\frac{1}{2}\n$$", r"\frac{1}{2}"),
    ("So\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
    (r"The answer is $\$36$.", r"\$36"),
    (r"The answer is $\$32,\!348$.", r"\$32,\!348"),
    ("The answer is $5$ dollars.", "5"),
    ("The answer is $5$ million.", None),
    ("The answer is half of $5$.", None),
    ("The answer is $5$ or six.", None),
    ("The answer is $x=5$ and $y=6$.", None),
    ("It is not $5$.", None),
    ("The value cannot be $5$.", None),
    ("I doubt it is $5$", None),
    ("So $x = 5$ or six", None),
    ("What is $5$?", None),
    ("The answers are $1$ and $2$.", "1, 2"),
    ("The answer is $x=1$ or $x=2$.", "x=1, x=2"),
    ("<answer>$5$</answer>", "5"),
    ("Reasons.\n5", "5"),
    ("The answer is $5$?", None),
    ("Let $x=5$.", None),
    ("The first step is $5$, so", None),
    (r"\boxed{5}. Wait, it's 6.", None),
    ("I don't know", None),
    ("", None),
    (r"\boxed{" + "1" * 2000 + "}", None),
]


@pytest.fixture(scope="module")
def grader():
    grader = LatexGrader(seconds=1.0)
    yield grader
    grader.close()


def graded(grader, pairs):
    texts = [rf"\boxed{{{answer}}}" for _, answer in pairs]
    grades = grader.grade(texts, [Question("q", "", reference) for reference, _ in pairs])
    return [grade.correct for grade in grades]


def test_equal_mathematics_passes(grader):
    pairs = EQUAL + MORE_EQUAL
    verdicts = graded(grader, pairs)
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict] == []


def test_anything_else_fails(grader):
    pairs = UNEQUAL + MORE_UNEQUAL
    verdicts = graded(grader, pairs)
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict] == []


def test_the_tables_are_large_enough():
    assert len(EQUAL) + len(UNEQUAL) >= 100
    assert len(MORE_EQUAL) >= 30 and len(MORE_UNEQUAL) >= 30


@pytest.mark.parametrize(("text", "formula"), TEXTS)
def test_the_last_statement_counts(text, formula):
    assert final_formula(text) == formula


@pytest.mark.parametrize(
    ("asked", "gold", "answer"),
    [
        ("Compute $513^2 - 487^2$.", "26000", "513^2-487^2"),
        (r"What is $\left(\frac{3}{4}\right)^2 + 1$?", r"\frac{25}{16}", r"(\frac34)^2+1"),
        (r"Evaluate $\sqrt{16} + 3!$.", "10", r"\sqrt{16}+3!"),
        (r"Simplify $(-k+4) + (-2+3k)$.", "2k+2", "(-k+4)+(-2+3k)"),
    ],
)
def test_what_the_question_says_itself_is_no_answer_to_it(grader, asked, gold, answer):
    texts = [rf"\boxed{{{answer}}}", rf"\boxed{{{gold}}}"]
    grades = grader.grade(texts, [Question("q", asked, gold)] * 2)
    assert [grade.correct for grade in grades] == [False, True]


@pytest.mark.timeout(180)
def test_computations_without_end_are_wrong_in_bounded_time(grader):
    start = time.monotonic()
    pairs = [(r"2\sqrt{3}", answer) for answer in HOSTILE]
    assert graded(grader, pairs) == [False] * len(HOSTILE)
    assert time.monotonic() - start < 100
    assert graded(grader, [(r"2\sqrt{3}", r"\sqrt{12}")]) == [True]  # a new worker does its work


def test_a_killed_worker_is_replaced():
    grader = LatexGrader(workers=1)
    pair = [(r"2\sqrt{3}", r"\sqrt{12}")]
    assert graded(grader, pair) == [True]
    worker = grader._idle.get()
    worker._process.kill()
    worker._process.wait()
    grader._idle.put(worker)
    assert graded(grader, pair) == [True]
    grader.close()


@pytest.mark.parametrize("opening", ["\\(", "\\[", "$", "$$", r"\$ $", r"\text{", "1 ", ", ", "x="])
@pytest.mark.timeout(10)
def test_long_hostile_text_takes_bounded_time(opening):
    LatexGrader(workers=0).extract(opening * (100_000 // len(opening)))
    sides("(1,2)", opening * (1000 // len(opening)))


@settings(max_examples=50)
@given(st.text(max_size=100))
def test_any_text_has_a_formula_or_none(text):
    formula = final_formula(text)
    assert formula is None or formula.strip()
