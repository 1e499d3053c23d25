"""What users wrote, made safe to show: nothing that names a person, nothing that reads as markup.

`sanitise` takes away the means to break out of the prompt's fence; `Redactor` replaces what identifies a
person by `[user] [handle] [email] [phone] [url]`. Both are pure, idempotent and linear in the text.

The patterns prefer to lose a title such as "Booking.com" over keeping an address, and prefer to keep a number
over redacting dates, prices or article numbers: a bare run of digits is a phone number only in a shape that
people write phone numbers in, or behind a word such as "tel" or "电话". Names of persons in running text
stay: that takes a model, and is no job for patterns.
"""

from __future__ import annotations

import re
from collections import Counter

PLACEHOLDERS = ("user", "handle", "email", "phone", "url")

# --- sanitise ---------------------------------------------------------------------------------------------

_BRACKETS = (("<", "‹"), (">", "›"), ("＜", "‹"), ("＞", "›"), ("﹤", "‹"), ("﹥", "›"))
_EMOJI = r"\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Control and format characters, fillers that show nothing, variation selectors (but text/emoji style) and
# tag characters, which smuggle text, and halves of surrogate pairs, which no UTF-8 can hold.
# Not the line and space controls: str.split() turns those into one space.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c"
    r"\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
    # A joiner stays only between the parts of an emoji.
    rf"|(?<![{_EMOJI}\ufe0f])\u200d+|\u200d+(?![{_EMOJI}])"
)
# [INST] [/INST] [SYSTEM_PROMPT] [gMASK] ...: control tokens of chat templates that need no angle bracket.
_TEMPLATE_TOKEN = re.compile(r"\[(\s*/?\s*(?:[a-z]?[A-Z][A-Z_]+|(?i:inst|sys|system_prompt))\s*)\]")


def sanitise(text: str) -> str:
    """One line without control, zero-width or bidi characters; `<` `>` become `‹` `›`, `[INST]` `(INST)`.

    Joiners inside an emoji sequence stay, all white space is one space, the ends are stripped.
    """
    if not (text.isascii() and text.isprintable()):
        text = _INVISIBLE.sub("", text)
    for bracket, harmless in _BRACKETS:
        text = text.replace(bracket, harmless)
    text = " ".join(text.split())
    return _TEMPLATE_TOKEN.sub(r"(\1)", text) if "[" in text else text


# --- anonymise --------------------------------------------------------------------------------------------

# Scripts that are written without spaces: an address glued to them ends where they begin.
_CJK = (
    r"\u1100-\u11ff\u2e80-\u9fff\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
    r"\U00020000-\U0003ffff"
)
_W = r"A-Za-z0-9_\u00c0-\u02af\u0370-\u052f"  # a word character of an alphabet that is written with spaces

_URL_CHAR = rf"[^\s‹›<>\"'“”‘’«»|\\^`{{}}\[\]…{_CJK}]"
_URL_END = rf"[^\s‹›<>\"'“”‘’«»|\\^`{{}}\[\]….,;:!?()*{_CJK}]"
_LABELS = rf"(?:[{_W}][{_W}\-]{{0,62}}\.)+"
_URL = (
    rf"[A-Za-z][A-Za-z0-9+.\-]{{1,15}}://{_URL_CHAR}*{_URL_END}"
    rf"|(?<![{_W}@])(?<![{_W}]\.)(?!(?i:asp|vb|ado|ml)\.(?i:net)\b)(?:"
    rf"(?i:www)\d?\.{_URL_CHAR}*{_URL_END}"
    # With no scheme, only endings that are no words of running text: "I like it.so good", "readme.md".
    rf"|{_LABELS}(?i:com|net|org|edu|gov|info|biz|cn)(?![{_W}\-])(?::\d{{2,5}})?(?:[/?#](?:{_URL_CHAR}*{_URL_END})?)?"
    rf"|(?![\d.]+[a-z]){_LABELS}(?:io|ai|app|dev|tv|co|uk|de|jp|fr|ru|kr|tw|hk|au|br|ca|nl|eu|ch|xyz|top)"
    rf"(?![{_W}\-])(?::\d{{2,5}})?(?:[/?#](?:{_URL_CHAR}*{_URL_END})?)?"
    # With a path, any country: youtu.be/x, t.me/x, bit.ly/x.
    rf"|(?![\d.]+[a-z]){_LABELS}[a-z]{{2}}(?::\d{{2,5}})?/{_URL_CHAR}*{_URL_END})"
)
_EMAIL = (
    rf"(?<![{_W}%+])(?<![{_W}%+][.\-])[{_W}%+][{_W}.%+\-]{{0,255}}@(?:[{_W}\-]{{1,63}}\.)+[A-Za-z]{{2,24}}"
)

_AT_TIME_OR_PRICE = (
    rf"\d{{1,4}}(?:[.,:]\d+)*(?i:am|pm|h|hrs?|k|p|fps|hz|kg|km|mph|x|th|st|nd|rd|ish)?(?![{_W}])"
)
_HANDLE = (
    rf"(?<![{_W}])@(?!{_AT_TIME_OR_PRICE})"
    rf"(?:[{_W}](?:[{_W}.\-]{{0,38}}[{_W}])?(?:@[{_W}](?:[{_W}.\-]{{0,62}}[{_W}])?)?|\w{{1,30}})"
    rf"|(?<![{_W}/])/?u/[A-Za-z0-9_\-]{{3,20}}(?![{_W}])"
)
_CONTACT = rf"(?:微信|威信|(?<![{_W}])(?i:weixin|wechat|[vw]x|qq))(?i:号码?|群|id)?[ :：]{{1,3}}"
_CONTACT_ID = rf"(?=[A-Za-z\-]*[\d_])[A-Za-z0-9_\-]{{5,20}}(?![{_W}])"

_SEP = r"[ .\-()/]{0,2}"
_PHONE_START = rf"(?<![{_W}+#$€£¥￥])(?<!\d[.,\-/])(?<![A-Za-z]-)"
_PHONE_END = rf"(?![{_W}])(?![.,\-]\d)"
_PHONE = (
    # Chinese mobile, with the country code in any form, and (below) half masked.
    rf"{_PHONE_START}(?:\(?(?:\+|00)?86\)?[ \-]?)?1[3-9]\d(?!0{{7}})(?:[ \-]?\d{{4}}){{2}}{_PHONE_END}"
    # +44 20 7946 0958, +1 (555) 123-4567: 8 to 15 digits (E.164).
    rf"|(?<![\d+])\+ ?\(?(?!\d0{{6}})[1-9](?:{_SEP}\d){{7,14}}(?!\d)"
    rf"|{_PHONE_START}(?:"
    r"1[3-9]\d\*{4}\d{4}"
    rf"|00[1-9]\d{{0,2}}[ \-]\(?\d(?:{_SEP}\d){{6,12}}"
    # National numbers with their leading 0, in groups; or 11 digits in a mobile's range (UK, KR, JP).
    r"|\(0\d{1,4}\)[ \-]?\d{3,4}[ \-]?\d{3,5}|0[1-9]\d{0,3}[ \-]\d{3,4}[ \-]\d{3,4}"
    r"|0[1-9]\d{1,3}[ \-/]\d{5,8}(?:-\d{1,5})?|0[1-9](?:[ .\-]\d\d){4}|0(?:7\d{9}|10\d{8}|[89]0\d{8})"
    # North America, and the Chinese service numbers.
    r"|(?:1[ .\-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.\-])\d{3}[ .\-]\d{4}|400-\d{3,4}-\d{3,4}"
    rf"){_PHONE_END}"
)
_PHONE_WORD = (
    rf"(?:(?<![{_W}])(?i:tel(?:ephone)?|phone|mobile|cell|whatsapp|fax|(?:call|text|ring|dial|sms)"
    r"(?: me| us)?(?: at| on)?)(?i: number| no| nr| is){0,2}[ :：.#=]{1,3}"
    r"|(?:电话|手机|号码|座机|联系方式)号?[ :：是为]{0,3})"
)
_PHONE_DIGITS = rf"\(?(?!(?:19|20)\d\d(?!\d))\d(?:{_SEP}\d){{6,14}}{_PHONE_END}"

_KEEP = rf"\[(?:{'|'.join(PLACEHOLDERS)})\]"
# One pass from the left, so that an address is eaten by the widest kind: an e-mail before its domain.
# `*_after` groups are what stays in front of a match that is known by the word before it.
_IDENTIFYING = re.compile(
    rf"(?P<keep>{_KEEP})|(?P<email>{_EMAIL})|(?P<url>{_URL})"
    rf"|(?P<handle>(?P<handle_after>{_CONTACT}){_CONTACT_ID}|{_HANDLE})"
    rf"|(?P<phone>(?P<phone_after>{_PHONE_WORD}){_PHONE_DIGITS}|{_PHONE})"
)
# Cheap tests that nearly all texts fail: what _IDENTIFYING matches contains one of these.
_DOMAIN_LIKE = re.compile(r"[.．][a-zA-Zａ-ｚＡ-Ｚ]")
_DIGIT_LIKE = re.compile(r"\d(?:\D{0,5}\d){6}|\*{4}")
_CONTACT_LIKE = re.compile(r"微信|威信|(?i:weixin|wechat|[vw]x|qq|ＱＱ)")
# The full-width forms that addresses are typed in; one character for one, so that offsets hold.
_NARROW = {0xFF00 + c: 0x20 + c for c in (*range(0x10, 0x1A), *range(0x21, 0x3B), *range(0x41, 0x5B))} | {
    ord(wide): narrow for wide, narrow in zip("＠．＋－＿／", "@.+-_/", strict=True)
}


class Redactor:
    """Replaces what identifies a person in the texts of one record, and counts it.

    `user_id` is redacted wherever it stands as a word of its own, in any case, if it has three characters
    or more: a shorter one would redact ordinary words and numbers.
    """

    def __init__(self, user_id: str = "") -> None:
        self.counts: Counter[str] = Counter()
        """How many of each of `PLACEHOLDERS` were put in."""
        self._user_id = sanitise(user_id)
        self._user_folded = self._user_id.lower()
        self._user_pattern: re.Pattern[str] | None = None

    def clean(self, text: str) -> str:
        """`sanitise` and `redact`."""
        return self.redact(sanitise(text))

    def redact(self, text: str) -> str:
        """The text with placeholders. What is left of a broken address is looked at again, until none is."""
        while True:
            redacted = self._replace(_IDENTIFYING, text, _narrow(text)) if _is_suspect(text) else text
            redacted = self._redact_user(redacted)
            if redacted == text:
                return text
            text = redacted

    def _redact_user(self, text: str) -> str:
        if len(self._user_id) < 3 or self._user_folded not in text.lower():
            return text
        if self._user_pattern is None:  # compiled for the few records whose texts hold the id
            before = rf"(?<![{_W}])" if re.match(rf"[{_W}]", self._user_id[0]) else ""
            after = rf"(?![{_W}])" if re.match(rf"[{_W}]", self._user_id[-1]) else ""
            self._user_pattern = re.compile(
                rf"(?P<keep>{_KEEP})|(?P<user>{before}{re.escape(self._user_id)}{after})", re.IGNORECASE
            )
        return self._replace(self._user_pattern, text, text)

    def _replace(self, pattern: re.Pattern[str], text: str, subject: str) -> str:
        """Replace in `text` what `pattern` finds in `subject`, its equal character by character."""
        parts: list[str] = []
        done = 0
        for match in pattern.finditer(subject):
            kind = match.lastgroup
            if kind is None or kind == "keep":
                continue
            start = match.start()
            if kind in ("handle", "phone") and match[f"{kind}_after"] is not None:
                start = match.end(f"{kind}_after")
            parts += (text[done:start], f"[{kind}]")
            done = match.end()
            self.counts[kind] += 1
        return "".join((*parts, text[done:])) if parts else text


def _narrow(text: str) -> str:
    return text if text.isascii() else text.translate(_NARROW)


def _is_suspect(text: str) -> bool:
    return (
        "@" in text
        or "＠" in text
        or "://" in text
        or "u/" in text
        or _DOMAIN_LIKE.search(text) is not None
        or _DIGIT_LIKE.search(text) is not None
        or _CONTACT_LIKE.search(text) is not None
    )


def anonymise(text: str, user_id: str = "") -> tuple[str, dict[str, int]]:
    """One text without what identifies a person, and how many of each kind were found (not sanitised)."""
    redactor = Redactor(user_id)
    return redactor.redact(text), dict(redactor.counts)
