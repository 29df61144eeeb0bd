# ruff: noqa: E501 (tables)
"""Answers in MGSM's ten languages, Korean, Arabic and Hindi: read whole, or not at all."""

from __future__ import annotations

import pytest

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.graders.exact import ExactGrader
from malt_jax.tasks.graders.number import NumberGrader

SAYS_18 = [
    # Chinese
    "答案是 18。", "答案是18。", "所以答案是：18", "最终答案为 18 美元。", "答案：18", "答案： **18**", "因此，答案是18个。",
    "她每天卖出 9 个鸡蛋，每个 2 美元，所以每天赚 9 * 2 = 18 美元。\n\n答案是 18。", "答案是１８。", "答：18", "正确答案是 18 元。",
    "答案是 18，因为 9 乘 2 等于 18。", "答案就是一共18个。", "答案应该是18個。",
    # Japanese
    "答えは18です。", "答えは 18 ドルです。", "答え：18", "したがって、答えは１８個です。", "最終的な答えは「18」です。", "正解は18である。",
    # Korean
    "정답은 18입니다.", "정답은 18입니다。", "답은 18개입니다.", "따라서 최종 답은 18달러입니다.", "정답: 18", "답: 18", "정답은 **18**입니다.",
    # Spanish
    "La respuesta es 18.", "La respuesta es: 18 dólares.", "Por lo tanto, la respuesta final es 18.", "Respuesta: 18", "**Respuesta:** 18",
    "La respuesta correcta es $18.", "La respuesta es 18, porque no vende los demás.", "Respuesta paso a paso: 9 * 2 = 18. La respuesta es 18.",
    # French
    "La réponse est 18.", "La réponse est : 18 dollars.", "Réponse : 18", "Donc, la réponse finale est de 18 euros.", "La reponse est 18.",
    # German
    "Die Antwort ist 18.", "Die Antwort lautet 18.", "Die Antwort lautet: 18 Dollar.", "Antwort: 18", "Also ist die Antwort 18. Antwort: 18",
    "Die richtige Antwort ist **18**.",
    # Russian
    "Ответ: 18", "Ответ: 18.", "Ответ — 18 долларов.", "Ответ - 18.", "Таким образом, ответ равен 18.", "Окончательный ответ: **18**.", "Правильный ответ: 18 яиц.",
    # Swahili
    "Jibu ni 18.", "Kwa hiyo jibu ni 18.", "Jibu: 18", "Jibu la mwisho ni dola 18.", "Jibu sahihi ni 18.",
    # Thai
    "คำตอบคือ 18", "คำตอบคือ 18 ดอลลาร์", "ดังนั้น คำตอบคือ ๑๘", "คำตอบ: 18", "คำตอบสุดท้ายคือ 18 บาทครับ",
    # Bengali
    "উত্তর হল 18।", "উত্তর হলো ১৮।", "উত্তর: ১৮", "সুতরাং, চূড়ান্ত উত্তর হল ১৮ ডলার।", "উত্তর 18।",
    # Telugu
    "సమాధానం 18.", "సమాధానం: ౧౮", "కాబట్టి సమాధానం 18 డాలర్లు.", "సమాధానం ఏమిటంటే 18.",
    # Arabic, Hindi
    "الإجابة هي 18.", "الإجابة هي ١٨.", "إذن الجواب هو ۱۸۔", "الجواب: ١٨", "الإجابة النهائية هي 18 دولارًا.", "الإجابة الصحيحة هي: 18؟\nالإجابة هي 18",
    "उत्तर 18 है।", "उत्तर: १८", "अंतिम उत्तर है १८।",
    # other signs for the same answer
    "The answer is １８", "The answer is １８．", "The answer is 18。", "The answer is 18۔", "The answer is 18।", "#### １８", "#### ١٨", "\\boxed{１８}", "The answer is 【18】",
    # without a statement
    "她每天赚 18 美元。", "彼女は18ドル稼ぎます。", "그녀는 18달러를 법니다.", "Ella gana 18 dólares.", "Elle gagne 18 dollars.", "Sie verdient 18 Dollar.", "Она зарабатывает 18 долларов.",
    "答案是18。这是对的。", "答えは18です。正しいです。", "Die Antwort ist 18. Dies ist richtig.", "Ответ: 18. Это верно.", "La respuesta es 18. Esto está bien.", "Jibu ni 18. Hii ni sahihi.", "उत्तर 18 है। यह सही है।", "คำตอบคือ 18. ถูกต้อง",
    "La respuesta es 18 veces.", "Die Antwort ist 18 Mal.", "La réponse est 18 fois.", "उत्तर 18 वर्ग मीटर है।", "Ответ: 18 раз", "Sie verdient 18 Dollar mehr als Bob.", "Elle gagne 18 dollars de plus.", "Como no vende los demás, gana 18 dólares.", "Ella gana 18 dólares más.", "उत्तर: १८|", "উত্তর: ১৮|", "الإجابة هي ٪١٨",
    "答案是：\n- 18", "Antwort:\n- 18", "Respuesta:\n> 18",
    "Anapata dola 18.", "เธอได้เงิน 18 ดอลลาร์", "সে ১৮ ডলার আয় করে।", "ఆమె 18 డాలర్లు సంపాదిస్తుంది.", "تكسب ١٨ دولارًا.", "一共有18个。",
]  # fmt: skip
NOT_18 = [
    # another number
    "答案是 17。", "정답은 81입니다.", "答えは8です。", "La respuesta es 1,8.", "Die Antwort ist 180.", "Ответ: -18", "Jibu ni 8.", "คำตอบคือ ๑๗", "উত্তর: ১৭", "సమాధానం 81.", "الإجابة هي ٨١.",
    # taken back, on the same line or later
    "答案是 18。不对，答案是 17。", "答案是 18。不对。", "정답은 18입니다. 아니요.", "La respuesta es 18. La respuesta es 17.", "Die Antwort ist 18. Nein.", "Ответ: 18. Нет, неверно.",
    "答えは18です。いいえ。", "الإجابة هي 18. خطأ.", "Jibu ni 18. Hapana.", "The answer is 18. 答案是 17。", "答案是 18。The answer is 17.",
    # denied
    "答案不是 18。", "答案不是18，是17。", "答えは18ではありません。", "答えは18じゃない。", "정답은 18이 아닙니다.", "La respuesta no es 18.", "La réponse n'est pas 18.",
    "Die Antwort ist nicht 18.", "Die Antwort lautet nicht 18.", "Ответ не 18.", "Ответ: не 18", "Jibu si 18.", "Jibu sio 18.", "คำตอบไม่ใช่ 18", "উত্তর 18 নয়।", "সমাধান: উত্তর হল 18 নয়।", "సమాధానం 18 కాదు.",
    "الإجابة ليست 18.", "उत्तर 18 नहीं है।", "答案不是 \\boxed{18}。", "La respuesta no es \\boxed{18}.", "Die Antwort ist nicht $\\boxed{18}$.",
    # hedged, bounded, a part
    "答案是 18 或 17。", "答案可能是18。", "答案至少是 18。", "答案是18以上。", "答案是18的一半。", "答案是三分之18。", "答えは18または17です。", "答えは18以上です。", "정답은 18 또는 17입니다.", "정답은 18 이상입니다.",
    "La respuesta es 18 o 17.", "La respuesta es 18 o diecisiete.", "La respuesta es al menos 18.", "La respuesta es más de 18.", "La réponse est 18 ou dix-sept.", "La réponse est au moins 18.",
    "Die Antwort ist 18 oder siebzehn.", "Die Antwort ist mindestens 18.", "Die Antwort ist die Hälfte von 18.", "Ответ: 18 или семнадцать.", "Ответ: больше 18.", "Jibu ni 18 au 17.", "Jibu ni zaidi ya 18.",
    "คำตอบคือ 18 หรือ 17", "คำตอบคือมากกว่า 18", "উত্তর হল 18 বা 17।", "সমাধানం 18 లేదా 17.", "الإجابة هي 18 أو 17.", "الإجابة هي أكثر من 18.", "उत्तर 18 या 17 है।", "Die Antwort ist 18, oder siebzehn.",
    # scaled
    "答案是 18万。", "答案是18亿元。", "答えは18億です。", "정답은 18만입니다.", "정답은 18천 원입니다.", "La respuesta es 18 mil.", "La respuesta es 18 millones.", "Die Antwort ist 18 Millionen.",
    "Die Antwort ist 18 tausend.", "La réponse est 18 mille.", "Ответ: 18 тысяч.", "Ответ: 18 миллионов", "Jibu ni elfu 18.", "คำตอบคือ 18 ล้าน", "উত্তর হল 18 হাজার।", "సమాధానం 18 వేలు.", "الإجابة هي 18 ألف.", "उत्तर 18 लाख है।",
    # less than nothing, or more than a number
    "答案是负18。", "答案是零下18度。", "答えはマイナス18です。", "정답은 마이너스 18입니다.", "La respuesta es menos 18.", "La réponse est moins 18.", "Die Antwort ist minus 18.", "Ответ: минус 18", "คำตอบคือ ลบ 18",
    "答案是18个半。", "答案是18的两倍。", "答えは18の半分です。", "정답은 18의 절반입니다.", "La respuesta es 18 y medio.", "La respuesta es el doble de 18.", "La réponse est 18 et demi.", "Die Antwort ist 18 einhalb.", "Ответ: 18 с половиной.",
    "Jibu ni nusu ya 18.", "উত্তর হল সাড়ে 18।", "الإجابة هي نصف 18.", "उत्तर साढ़े 18 है।", "คำตอบคือสองเท่าของ 18",
    # asked, almost, or about another number
    "答案是18？", "Die Antwort ist 18?", "¿La respuesta es 18?", "La réponse est 18 ?", "คำตอบคือ 18?", "答えは18でしょうか？", "Die Antwort ist fast 18.", "La respuesta es casi 18.",
    "La réponse est presque 18.", "Ответ: почти 18", "Ответ: до 18", "คำตอบคือ เกือบ 18", "답은 18보다 큽니다.", "答案是18多。", "答案是根号18", "答えは18弱です。", "答えは18以外です",
    "Die falsche Antwort ist 18.", "Неправильный ответ: 18", "错误答案是 18。", "답은 거의 18입니다.",
    # taken back
    "答案是 18。等等，应该是17。", "答案是 18。更正：17。", "Die Antwort ist 18. Moment, 17.", "La respuesta es 18. Perdón, 17.", "La réponse est 18. Attendez, c'est 17.", "Ответ: 18. Стоп, 17.",
    "答案是18。 这不对。", "答案是18。 这是错的。", "答案是18。 不正确。", "答案是18。 不，是20。", "答えは18です。 間違いです。", "정답은 18입니다. 이것은 틀렸습니다.", "الإجابة هي 18. هذا خطأ.", "उत्तर 18 है। यह गलत है।", "উত্তর: 18। এটা ভুল।",
    "సమాధానం 18. ఇది తప్పు.", "คำตอบคือ 18. ผิด", "Ответ: 18. Это ошибка.", "Die Antwort ist 18. Dies ist falsch.", "La réponse est 18. Cela est faux.", "La respuesta es 18. Esto está mal.",
    "Jibu ni 18. Hii si sahihi.", "#### 18\n这不对。", "#### 18\n这是错的。", "#### 18\n不正确。", "#### 18\n不，是20。", "#### 18\n間違いです。", "#### 18\n이것은 틀렸습니다.", "#### 18\nهذا خطأ.", "#### 18\nयह गलत है।",
    "#### 18\nএটা ভুল।", "#### 18\nఇది తప్పు.", "#### 18\nผิด", "#### 18\nЭто ошибка.", "#### 18\nDies ist falsch.", "#### 18\nCela est faux.", "#### 18\nEsto está mal.", "#### 18\nHii si sahihi.",
    # bounds and operations, also without a statement
    "答案是低于18。", "答案是高于18。", "答えは18より多いです。", "La respuesta es por debajo de 18.", "La respuesta es un mínimo de 18.", "La respuesta es dos veces 18.", "La réponse est jusqu’à 18.",
    "La réponse est deux fois 18.", "Die Antwort ist wenigstens 18.", "Die Antwort ist maximal 18.", "Die Antwort ist zweimal 18.", "Ответ: ниже 18", "Ответ: дважды 18", "Jibu ni juu ya 18.",
    "الإجابة هي 18 فأكثر.", "الإجابة هي 18 زائد اثنين.", "उत्तर 18 का वर्ग है।", "คำตอบคือ 18 คูณสอง", "Sie verdient mehr als 18 Dollar.", "Sie verdient die Hälfte von 18 Dollar.",
    "Elle gagne moins de 18 dollars.", "Ella gana más de 18 dólares.", "Ella gana la mitad de 18 dólares.", "Ella no gana 18 dólares.", "Sie verdient nie 18 Dollar.", "Anapata zaidi ya dola 18.",
    # short words for scales
    "Ответ: 18 тыс. рублей", "Ответ: 18 млн", "Ответ: 18 сотен", "Die Antwort ist 18 Mio.", "Die Antwort ist 18 Tsd. Euro.", "Die Antwort ist 18 Mrd.", "คำตอบคือ 18 ร้อย", "उत्तर 18 सौ है।", "Jibu ni mia 18.",
    # two numbers, or digits that are not of one number
    "答案是 17 和 18。", "答案是 3万18。", "答案是 18 或十七。", "정답은 17, 18입니다.", "#### 1８٨", "#### 1٨", "The answer is 18十.",
    # nothing that the last statement does not hold
    "一共有18个。答案是十七。", "Ella tiene 18 huevos. La respuesta es diecisiete.", "Sie hat 18 Eier. Die Antwort ist", "答案是不知道。",
]  # fmt: skip

GROUPED = [  # (text, the number that is read, or None)
    ("She earns 1 200 dollars.", "1200"), ("The answer is 1 200.", "1200"), ("#### 1\u202f200", "1200"), ("#### 1\u00a0200", "1200"), ("The answer is 1\u2009200\u2009000.", "1200000"),
    ("La réponse est 1 200 euros.", "1200"), ("La réponse est 12 345,5.", "12345.5"), ("Ответ: 1 200 рублей", "1200"), ("\\boxed{1 200}", "1200"), ("The total is 12 500 000 people.", "12500000"),
    ("#### 1’200", "1200"), ("#### 1'200'000", "1200000"), ("#### 12,34,567", "1234567"), ("The answer is ₹1,23,456.", "123456"), ("उत्तर 12,34,567 है।", "1234567"),
    ("Die Antwort ist 1.234.567.", "1234567"), ("Die Antwort ist 1.234,50 Euro.", "1234.5"), ("La respuesta es 3,5.", "3.5"), ("Die Antwort ist 0,125.", "0.125"), ("La réponse est 1234,5.", "1234.5"),
    ("La respuesta es 1.5.", "1.5"), ("Ответ: 2,5 кг", "2.5"), ("Die Antwort ist 12,50 €.", "12.5"), ("#### 1.234.567", "1234567"), ("#### 1.234,50", "1234.5"),
    ("答案是 1,200。", "1200"), ("答案是１，２００。", "1200"), ("الإجابة هي ١٬٢٠٠.", "1200"), ("الإجابة هي ٣٫٥.", "3.5"), ("উত্তর: ১,২০০", "1200"), ("答案是1.5万。", "15000"), ("정답은 3만입니다.", "30000"),
    ("答えは2億です。", "200000000"), ("La respuesta es 5 mil.", "5000"), ("Die Antwort ist 2,5 Millionen.", "2500000"), ("Ответ: 3 тысячи", "3000"), ("答案是5千克。", "5"), ("คำตอบคือ 2 ล้าน", "2000000"),
    ("Ответ: 2 тыс. рублей", "2000"), ("Ответ: 3 млн", "3000000"), ("Die Antwort ist 2,5 Mio. Euro.", "2500000"), ("คำตอบคือ 5 ร้อย", "500"), ("उत्तर 5 सौ है।", "500"),
    ("Jibu ni elfu 2.", "2000"), ("Jibu ni milioni 2.", "2000000"), ("Jibu ni laki 3.", "300000"), ("الإجابة هي 3 مئات", "300"),
    ("答案是-18。", "-18"), ("答案是负18。", "-18"), ("정답은 -18입니다.", "-18"), ("La respuesta es menos 18.", "-18"), ("Die Antwort ist minus 2,5 Grad.", "-2.5"), ("Ответ: -2,5", "-2.5"), ("الإجابة هي -١٨.", "-18"),
    # ambiguous, malformed, or several numbers
    ("Die Antwort ist 1.234.", None), ("Die Antwort ist 1,234.", None), ("La respuesta es 12.345 dólares.", None), ("La réponse est 1,200.", None), ("Ответ: 1.200", None),
    ("#### 0,125", None), ("#### 3,5", None), ("#### 12,3456", None), ("#### 1,23", None), ("She has 17 18 eggs.", None), ("In 2024 100 people came.", None), ("She has 2 million 500.", None),
    ("#### 1.23.456", None), ("#### 1,234.567,8", None), ("答案是3万5千。", "35000"), ("She earns 12 00 dollars.", None), ("It is 1 2000.", None), ("#### 1 200 50", None), ("#### 012,345", None),
]  # fmt: skip

SAYS_B = [
    "答案是 B。", "答案是B。", "答案是（B）。", "答案：(B) enforce", "正确答案是 B。", "正解はBです。", "答えは(B)です。", "정답은 B입니다.", "정답은 (B)입니다.", "정답: B", "La respuesta es B.", "La respuesta correcta es (B).",
    "La réponse est (B).", "Réponse : B", "Die Antwort ist (B).", "Die richtige Antwort lautet B.", "Ответ: B", "Ответ — (B).", "Правильный ответ: (B) enforce.", "Jibu ni (B).", "คำตอบคือ (B)", "คำตอบคือ B",
    "答案选B。", "故选：B", "正确选项是B。", "答えは選択肢Bです。", "La respuesta es la B.", "La opción correcta es la B.", "La réponse est l'option B.", "Die Antwort ist Option B.", "คำตอบคือข้อ B", "الإجابة هي الخيار B.",
    "উত্তর হল (B)।", "సమాధానం (B).", "الإجابة هي (B).", "उत्तर (B) है।", "The answer is （Ｂ）", "The answer is Ｂ。",
]  # fmt: skip
NOT_B = [
    "答案不是 B。", "答案是 A 或 B。", "答案是 A。", "答案是 B 和 C。", "正解はBではありません。", "정답은 B가 아닙니다.", "정답은 A 또는 B입니다.", "La respuesta no es B.", "La respuesta es A o B.", "La respuesta es B o C.",
    "La réponse n'est pas (B).", "La réponse est B ou C.", "Die Antwort ist nicht (B).", "Die Antwort ist (B) oder (C).", "Ответ: не B", "Ответ: A или B", "Jibu si (B).", "Jibu ni A au B.", "คำตอบไม่ใช่ B", "คำตอบคือ A หรือ B",
    "答案不选B", "答案是B？", "La respuesta no es la B.", "La opción incorrecta es B.", "La respuesta es la B o la C.", "Die falsche Antwort ist B.", "คำตอบไม่ใช่ข้อ B",
    "উত্তর (B) নয়।", "సమాధానం (B) కాదు.", "الإجابة ليست (B).", "उत्तर (B) नहीं है।", "答案是 B。不对，答案是 C。", "Die Antwort ist (B). Die Antwort ist (C).", "答案是 (B) ignore。", "Die Antwort ist (A) enforce.",
]  # fmt: skip
CHOICES = {"A": "ignore", "B": "enforce", "C": "not obey or follow", "D": "yell at"}

PARIS = ["答案是 Paris。", "答えは「Paris」です。", "정답은 Paris입니다.", "La respuesta es Paris.", "Réponse : Paris", "Die Antwort lautet Paris.", "Ответ: Paris.", "Jibu ni Paris.", "الإجابة هي Paris.", "Answer: Ｐaris。"]  # fmt: skip
NOT_PARIS = ["答案不是 Paris。", "答えはParisではありません。", "정답은 Paris가 아닙니다.", "La respuesta no es Paris.", "La réponse est Paris ou Rome.", "Die Antwort ist nicht Paris.", "Ответ: не Paris.", "答案是 Paris。答案是 Rome。", "答案是 Paris 或 Rome。"]  # fmt: skip


def graded(grader, text: str, question: Question) -> bool:
    return grader.grade([text], [question])[0].correct


@pytest.mark.parametrize("text", SAYS_18)
def test_an_answer_in_another_language_is_read(text):
    assert NumberGrader().extract(text) == "18"


@pytest.mark.parametrize("text", NOT_18)
def test_a_denied_bounded_scaled_or_other_number_is_not_18(text):
    assert NumberGrader().extract(text) != "18"


@pytest.mark.parametrize(("text", "number"), GROUPED)
def test_groups_and_decimals_are_read_whole_or_not_at_all(text, number):
    assert NumberGrader().extract(text) == number


@pytest.mark.parametrize("text", SAYS_B)
def test_a_choice_in_another_language_is_read(text):
    assert graded(ChoiceGrader(), text, Question("q", "", "B", {"choices": CHOICES}))


@pytest.mark.parametrize("text", NOT_B)
def test_a_denied_or_other_choice_in_another_language_fails(text):
    assert not graded(ChoiceGrader(), text, Question("q", "", "B", {"choices": CHOICES}))


@pytest.mark.parametrize("text", PARIS)
def test_words_in_another_language_are_read(text):
    assert graded(ExactGrader(), text, Question("q", "", "Paris"))


@pytest.mark.parametrize("text", NOT_PARIS)
def test_denied_words_in_another_language_fail(text):
    assert not graded(ExactGrader(), text, Question("q", "", "Paris"))
