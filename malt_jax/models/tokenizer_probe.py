"""A probe of texts on which a tokenizer must give the ids that its own file gives."""

from __future__ import annotations

from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.models.tokenizer_engines import Engine

PROBE = (
    # Words, contractions, identifiers, addresses, and numbers in several scripts.
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3:07 o'clock, isn't it?",
    "CamelCase snake_case kebab-case UPPER https://a.example/b?c=d&e=f#g me@b.example",
    "0 7 42 128 1999 65,536 3.14159 1e-7 -5 50% $1,200.50 1/2 10:30 2024-07-26",
    "12345678901234567890 ١٢٣ १२३ １２３ ½ ² ⅷ",
    # Runs of blanks, tabs and line breaks, which tokenizers merge in different ways.
    "  two   three    four     five        eight                sixteen",
    "blanks at the end   ",
    " ",
    "   ",
    "a\n\nb\n\n\nc\n\n\n\nd\r\ne\r\n\r\nf",
    "\n",
    "\n\n",
    " \n \n\t\n",
    "\tone\t\ttwo\t \tthree \t",
    "no-break\u00a0space, narrow\u202fspace, ideographic\u3000space, zero\u200bwidth\u200djoiner",
    # Code, LaTeX and Markdown, as models write them.
    "def f(x):\n    if x > 0:\n        return x**2  # square\n\treturn {'a': [1, 2]}\n",
    r"$\frac{1}{2} \le \sqrt[3]{x_{n+1}^{2}}$ \boxed{18} \[ \int_0^\infty e^{-x}\,dx \]",
    "#### 18\n**bold** _it_ `code` ```python\n1+1\n``` | a | b | <b>&amp;</b>",
    # Joined emoji, combining marks and compatibility forms, which normalisation changes.
    "🙂 👩‍👩‍👧‍👦 🇰🇷 👍🏽 ☃️ 𝔘𝔫𝔦 ﷺ ﬁ ™",
    "é e\u0301 ñ n\u0303 a\u0323\u0301 क\u094d\u0937 กำ ﾊﾟ Å",
    # Languages and scripts.
    "Straße Ærøskøbing naïve Ελληνικά Кириллица ґ ქართული Հայերեն",
    "עִבְרִית العَرَبِيَّة فارسی हिन्दी বাংলা தமிழ் తెలుగు ไทย ລາວ မြန်မာ አማርኛ",
    "中文分词，测试。 日本語のテスト、カタカナ。 한국어 문장입니다. Tiếng Việt",
    "“quotes” ‘single’ – — … « » ¿ ¡ § ° ± × ÷ ≤ ≠ → ∞ √ ∑ € £ ¥",
)
"""Texts on which tokenizers that look alike are known to differ."""


def compare(engine: Engine, own: Engine, path: Path) -> None:
    """Refuses an engine that gives other ids than the file at `path` by itself, its `own`.

    Compared are the texts of the probe, and each of the file's added tokens among other text.
    """
    # A token stands beside blanks, line breaks and other text: what a wrong flag would swallow.
    tokens = [token.content for token in own.added.values()]
    among = [f"{token} one{token}two\n{token}{token}[INST] 3" for token in tokens]
    for text in (*PROBE, *among):
        found, expected = engine.encode(text), own.encode(text)
        if found != expected:
            raise UserError(
                f"{path}: {text!r} would be read as the ids {found}, but this file says "
                f"{expected}; save a tokenizer.json that agrees with the folder's other files."
            )
