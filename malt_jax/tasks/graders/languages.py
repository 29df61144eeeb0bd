"""The languages in which final answers are read.

They are English (whose rules are in `statements`), the ten others of MGSM, Korean, Arabic and
Hindi. `fold` turns the digits and the punctuation of every script into ASCII, so that the graders
need one set of rules. `LANGUAGES` says how each language announces and denies an answer, `SCALES`
what its words for thousands and millions are worth, and `unread` finds questions in a language
that is not covered.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

_STOPS = {"。": ".", "｡": ".", "।": ".", "॥": ".", "۔": ".", "！": "!", "？": "?", "؟": "?",
          "，": ",", "、": ",", "،": ",", "；": ";", "؛": ";", "：": ":"}  # fmt: skip
_SIGNS = (
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | str.maketrans("「」『』【】", '""""[]')
    | str.maketrans("٫٬٪", ".,%")
)
# Scripts without blanks between words, or whose words take endings: a number may touch them.
ATTACHED = "\u0600-\u06ff\u0900-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"


def fold(text: str) -> str:
    """Text with the digits, punctuation and full-width letters of every script as in ASCII.

    A run of digits from two scripts stays as it is, so that it is not read as a number.
    """
    if text.isascii():
        return text
    # The patterns have the same form (see `_compiled`), so accents match however they were typed.
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=\d)，(?=\d)", ",", text)  # it separates groups of digits
    # Elsewhere the ASCII sign needs a blank behind it: that is how a sentence is seen to end.
    text = re.sub(f"[{''.join(_STOPS)}]", lambda m: f"{_STOPS[m[0]]} ", text)
    return re.sub(r"\d+", _ascii_digits, text.translate(_SIGNS))


def _ascii_digits(run: re.Match[str]) -> str:
    # A digit's code less its value is the same for all ten digits of one script.
    scripts = {ord(digit) - int(digit) for digit in run[0]}
    return "".join(str(int(digit)) for digit in run[0]) if len(scripts) == 1 else run[0]


@dataclass(frozen=True)
class Language:
    """How one language says "the answer is", as regular expressions.

    answer: nouns that announce an answer.
    link:   what connects the noun with the answer; a colon or an equals sign always does.
    denial: words that deny or doubt the answer, or make it a bound or a part of something.
    direct: whether the answer may follow the noun without a link.
    spaced: whether blanks separate words, so that only whole words match.
    decimal_comma: whether decimals are written with a comma and thousands with a point.
    """

    answer: str
    link: str
    denial: str
    direct: bool = True
    spaced: bool = True
    decimal_comma: bool = False

    @cached_property
    def opener(self) -> re.Pattern[str]:
        """Matches up to the answer, `line`. The words before it are `between` or `near`."""
        # Where no blanks separate words, there are no borders of words to look for.
        start, end = (r"(?<!\w)", r"(?![\w'’])") if self.spaced else ("", "")
        # A capital letter alone or in brackets is the label of a choice and ends the words between.
        label = r"[(\[]?(?-i:[A-Z])[)\]]?(?!\w)"
        between = rf"(?P<between>(?:(?!{label})[^.:=\n\d]){{0,60}}?)"
        near = rf"(?P<near>[^.:=\n\d]{{0,9}}?)(?=[ *_\"(\[$]*(?:-?\d|\\|(?<!\w){label}))"
        return _compiled(
            rf"{start}(?:{self.answer})(?:{between}(?:[:=]|{start}(?:{self.link}){end})"
            rf"|{near if self.direct else '(?P<near>(?!))'})"
            # 401 is one more than `statements.MAX_SPAN`, whose module imports this one.
            r"(?:[\s:]|[*_]+(?=\s))*(?=(?P<line>[^\n]{0,401}))"
        )

    @cached_property
    def denies(self) -> re.Pattern[str]:
        start, end = (r"(?<![^\s(*])", r"(?![^\s.,;:!?)*])") if self.spaced else ("", "")
        return _compiled(rf"{start}(?:{self.denial}){end}")


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(unicodedata.normalize("NFC", pattern), re.IGNORECASE)


LANGUAGES = {
    "German": Language(
        r"antwort", r"ist|lautet|beträgt|wäre",
        r"nicht|keine?\w*|oder|vielleicht|möglicherweise|eventuell|mindestens|höchstens|mehr als|"
        r"weniger als|über|unter|bis zu|zwischen|falsch\w*|weder|die hälfte|doppelt\w*|dreifach\w*|"
        r"drittel|viertel|wurzel|einhalb|ein halb\w*|wenn|falls",
        direct=False, decimal_comma=True,
    ),
    "Spanish": Language(
        r"respuesta", r"es|son|sería|será",
        r"no|nunca|tampoco|ni|o|u|quizás?|tal vez|posiblemente|al menos|por lo menos|"
        r"como (?:máximo|mucho|mínimo)|más de|menos de|mayor|menor|entre|hasta|la mitad|el doble|"
        r"el triple|un tercio|al cuadrado|raíz|y medi[ao]|incorrecta|falsa|si",
        direct=False, decimal_comma=True,
    ),
    "French": Language(
        r"r[ée]ponse", r"est(?: de)?|sera|serait",
        r"pas|jamais|ni|ou|peut-être|au (?:moins|plus|maximum|minimum)|plus de|moins de|"
        r"supérieure?|inférieure?|entre|jusqu'à|la moitié|le double|le triple|"
        r"un tiers|un quart|au carré|racine|et demie?|fausse|incorrecte|si",
        direct=False, decimal_comma=True,
    ),
    "Russian": Language(
        r"ответ\w{0,3}", r"равен|равно|это|будет|составляет|составит|[—–]|-(?=\s)",
        r"не|ни|нет|или|либо|возможно|наверное|может быть|как минимум|минимум|максимум|больше|"
        r"меньше|более|менее|свыше|между|половин\w*|вдвое|втрое|треть|четверть|в квадрате|корень|"
        r"неправильн\w*|неверн\w*|если",
        decimal_comma=True,
    ),
    "Swahili": Language(
        r"jibu|majibu", r"ni",
        r"si|sio|siyo|hapana|au|labda|huenda|angalau|zaidi ya|chini ya|kati ya|nusu|elfu|milioni|"
        r"laki|mara mbili|mara tatu|robo|kama|makosa",
    ),
    "Arabic": Language(
        r"(?:ال)?[إا]جابة(?:\s+(?:النهائية|الصحيحة))?|(?:ال)?جواب(?:\s+(?:النهائي|الصحيح))?",
        r"هي|هو|تساوي|يساوي",
        r"ليست?|لا|غير|أو|ربما|قد|على الأقل|على الأكثر|أكثر من|أقل من|بين|"
        r"و?نصف|ضعف|ثلث|ربع|جذر|خاطئة?|خطأ|إذا",
    ),
    "Bengali": Language(
        r"উত্তর(?:টি)?", r"হলো|হল|হচ্ছে|হবে",
        r"নয়|না|নেই|অথবা|বা|হয়তো|সম্ভবত|কমপক্ষে|অন্তত|সর্বোচ্চ|বেশি|কম|অর্ধেক|দ্বিগুণ|সাড়ে|ভুল|যদি",
    ),
    "Hindi": Language(
        r"उत्तर|जवाब", r"है|हैं|होगा",
        r"नहीं|न|या|शायद|कम से कम|अधिक से अधिक|ज़्यादा|ज्यादा|अधिक|कम|आधा|आधे|दोगुना|साढ़े|गलत|यदि|अगर",
    ),
    "Telugu": Language(
        r"సమాధానం|సమాధానము|జవాబు", r"ఏమిటంటే|అంటే",
        r"కాదు|లేదా|కాకపోవచ్చు|బహుశా|కనీసం|గరిష్టంగా|కంటే|సగం|రెట్ట|న్నర|తప్పు", spaced=False,
    ),
    "Thai": Language(
        r"คำตอบ|ตอบ", r"คือ|เป็น|เท่ากับ|ได้แก่",
        r"ไม่|หรือ|อาจ|อย่างน้อย|อย่างมาก|มากกว่า|น้อยกว่า|เกิน|ระหว่าง|ครึ่ง|"
        r"สองเท่า|กำลังสอง|รากที่|ผิด|ถ้า", spaced=False,
    ),
    "Chinese": Language(
        r"答案|答(?=[:\s])", r"是|为|為|等于|等於",
        r"不(?!同|过|過)|没有|沒有|并非|並非|或|也许|也許|可能|至少|至多|最多|最少|超过|超過|少于|少於|多于|"
        r"多於|大于|大於|小于|小於|以上|以下|一半|半|分之|\d\s*的|除非|如果|错|錯", spaced=False,
    ),
    "Japanese": Language(
        r"答え|正解", r"は|が",
        r"ない|なく|ません|または|もしくは|あるいは|か、|かもしれ|おそらく|以上|以下|未満|超|少なくとも|最大|"
        r"最低|半|分の|\d\s*の|間違|誤", spaced=False,
    ),
    "Korean": Language(
        r"정답|답", r"은|는|이",
        r"아니|아닙|아닌|않|없|또는|혹은|아마|이상|이하|미만|초과|적어도|"
        r"최소|최대|절반|분의|\d\s*의|\d\s*반(?!드)|틀", spaced=False,
    ),
}  # fmt: skip

# "18입니다", "18 है": what may end a sentence behind its answer.
COPULA = re.compile(
    r"(?<=[\w)\]}\"*$%])\s*(?:입니다|이다|이에요|예요|です|である|だ|है|हैं|হয়|హై|ครับ|ค่ะ)(?=\W*$)"
)
# What takes back the answer before it, at the start of a sentence of its own.
TAKEN_BACK = (
    r"(?:不对|不對|错了|錯了|不是|違い|いいえ|아니|틀렸|ไม่|కాదు|తప్పు)|(?:nein|falsch|non|нет|неверно|hapana|لا|خطأ|না|ভুল|"
    r"नहीं|गलत)(?!\w)"
)
# What starts a reason behind an answer; the answer ends there.
REASON = _compiled(
    r"[,;]?\s+(?:porque|ya que|pues|weil|denn|da|parce que|car|puisque|потому что|так как|поскольку"
    r"|kwa sababu|لأن\w*|কারণ|क्योंकि|ఎందుకంటే|なぜなら|왜냐하면)(?!\w)|เพราะ|[,;\s]\s*(?:因为|因為)"
)

# Denials in texts without a statement, in languages that share their letters with English.
_LATIN_DENIAL = re.compile(
    r"\b(?:nicht|keine?\w*|oder|vielleicht|mindestens|höchstens|no (?:es|son|hay)|quizás?|al menos|"
    r"n['’](?:est|a|y)|pas|peut-être|au moins|hapana|labda|angalau)\b",
    re.IGNORECASE,
)


_LATIN = ("German", "Spanish", "French", "Swahili")


def candidates(text: str) -> list[Language]:
    """The languages that a text may be in, judged by its letters; English is never listed."""
    return [LANGUAGES[name] for name in (_LATIN if text.isascii() else LANGUAGES)]


def denied(words: str) -> bool:
    """Whether a sentence denies or doubts something, in any of the languages but English."""
    if _LATIN_DENIAL.search(words):
        return True
    others = (language for name, language in LANGUAGES.items() if name not in _LATIN)
    return not words.isascii() and any(language.denies.search(words) for language in others)


_SCALES = {  # words for powers of ten, with what may not follow them
    r"tausend(?!\w)": 10**3, r"millionen(?!\w)": 10**6, r"milliarden?(?!\w)": 10**9,
    r"mille(?!\w)": 10**3, r"millions?(?!\w)": 10**6, r"milliards?(?!\w)": 10**9,
    r"mill(?:ón|ones)(?!\w)": 10**6, r"тысяч[аи]?(?!\w)": 10**3, r"миллион(?:а|ов)?(?!\w)": 10**6,
    r"миллиард(?:а|ов)?(?!\w)": 10**9, "ألف|آلاف": 10**3, "مليون|ملايين": 10**6, "مليار": 10**9,
    "হাজার|हज़ार|हजार|వేలు|వేల": 10**3, "লক্ষ|লাখ|लाख|లక్షలు|లక్షల|లక్ష": 10**5,
    "কোটি|करोड़|కోట్లు|కోట్ల": 10**7, "พัน(?!ธ)": 10**3, "หมื่น": 10**4, "แสน": 10**5, "ล้าน": 10**6,
    "[百백]": 100, "千(?![克米瓦])|천": 10**3, "[万萬만]": 10**4, "[亿億억]": 10**8,
    "[兆조]": 10**12,
}  # fmt: skip
SCALE = _compiled(rf"\s*(?:{'|'.join(f'({word})' for word in _SCALES)})")
SCALES = list(_SCALES.values())
"""The factors that the groups of `SCALE` stand for."""

# Words that are frequent in questions of one covered language and rare in all other languages.
_FREQUENT = {
    "the", "of", "and", "how", "what", "many", "does", "are", "with", "for", "would", "you", "his",
    "she", "und", "das", "wie", "viele", "ist", "los", "las", "cuántos", "cuántas", "cuánto", "les",
    "des", "est", "combien", "chaque", "kwa", "ngapi", "ya", "kila", "wake", "и", "сколько", "она",
    "если", "было", "что", "каждый", "من", "في", "كم", "على", "إلى", "كل",
}  # fmt: skip
_OWN_SCRIPT = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "TELUGU", "BENGALI", "DEVANAGARI"}


def unread(texts: Iterable[str]) -> bool:
    """Whether texts seem to be in a language that is not covered.

    Judged from the script of the first texts, and, where several languages share it, from the
    share of frequent words. Fewer than 50 words are too few to tell.
    """
    words = re.findall(r"[^\W\d_]+", " ".join(islice(texts, 200))[:100_000].casefold())
    if len(words) < 50:
        return False
    # The first word of a letter's Unicode name is its script, such as LATIN.
    scripts = Counter(unicodedata.name(word[0], "?").split()[0] for word in words)
    (script, _), *_ = scripts.most_common(1)
    return script not in _OWN_SCRIPT and sum(w in _FREQUENT for w in words) < 0.03 * len(words)
