"""What identifies a person goes, dates, prices and article numbers stay, and nothing reads as markup."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.anonymise import PLACEHOLDERS, Redactor, anonymise, sanitise

ADDRESSED = [
    # e-mail
    ("write to bob.smith+news@example.co.uk.", "write to [email]."),
    ("邮箱bob@qq.com谢谢", "邮箱[email]谢谢"),
    ("<bob@example.com>", "‹[email]›"),
    ("mailto:bob@example.com", "mailto:[email]"),
    ("ｂｏｂ＠ｑｑ．ｃｏｍ", "[email]"),
    ("a@b.com, c@d.org", "[email], [email]"),
    ("bob@exam\u200bple.com", "[email]"),
    # URLs
    ("see https://a.example/x?y=1&z=#top.", "see [url]."),
    ("看这里https://weibo.com/u/123你好", "看这里[url]你好"),
    ("（http://t.cn/AbC）", "（[url]）"),
    ("(www.example.org/path)", "([url])"),
    ("淘宝taobao.com好", "淘宝[url]好"),
    ("Amazon.COM is closed", "[url] is closed"),
    ("youtu.be/abc and t.me/x_y", "[url] and [url]"),
    ("[my page](https://a.example/b)", "[my page]([url])"),
    ("ftp://user:secret@host.example/file", "[url]"),
    ("wait...taobao.com", "wait...[url]"),
    # handles
    ("thanks @jane_doe!", "thanks [handle]!"),
    (".@jane.doe: hi", ".[handle]: hi"),
    ("转发@小明同学：好看", "转发[handle]：好看"),
    ("@jane你好", "[handle]你好"),
    ("＠jane", "[handle]"),
    ("@jane@mastodon.example", "[handle]"),
    ("/u/jane-doe on r/AskWomen", "[handle] on r/AskWomen"),
    ("加微信：abc_123 聊", "加微信：[handle] 聊"),
    ("QQ 123456789", "QQ [handle]"),
    # phone numbers
    ("13812345678", "[phone]"),
    ("电话13812345678。", "电话[phone]。"),
    ("138-1234-5678 or 138 1234 5678", "[phone] or [phone]"),
    ("(+86)13812345678 86-13812345678 +8613812345678 0086 138 1234 5678", "[phone] [phone] [phone] [phone]"),
    ("138****5678", "[phone]"),
    ("１３８１２３４５６７８", "[phone]"),
    ("010-62345678, (0755)88889999, 400-820-8820", "[phone], [phone], [phone]"),
    ("+44 20 7946 0958", "[phone]"),
    ("+1 (555) 123-4567", "[phone]"),
    ("+49-30-901820", "[phone]"),
    ("020 7946 0958 / 07911 123456", "[phone] / [phone]"),
    ("06 12 34 56 78", "[phone]"),
    ("(555) 123-4567, 555.123.4567, 1-800-555-0199", "[phone], [phone], [phone]"),
    ("call me at 555 123 4567", "call me at [phone]"),
    ("Tel: 5551234", "Tel: [phone]"),
    ("联系方式：6234 5678", "联系方式：[phone]"),
]

HARMLESS = [
    "2024-05-03 and 01-02-2024 and 3/4/2021, 03.05.2024",
    "2021年5月3日 12:30",
    "10:30-11:45, 1990-2000, 2020 2021 2022 2023",
    "2024-05-03T10:30:00+08:00",
    "$1,299.99 or ¥12800 or €1.234.567,89",
    "价格 12800 元，库存 1000000 件",
    "15000000000 and +10000000 points",
    "0.13812345678, 13812345678.5, 555-123-4567-8901",
    "Sleeping 750, Reading 90, Cooking 30 25 5",
    "ISBN 978-7-111-12345-6 and 978-0-306-40615-7",
    "EAN 4006381333931, SKU 12345678, B13812345678, SKU-13812345678",
    "order 20240503123456",
    "card 6222 5212 3456 7890",
    "iPhone 15 Pro 256GB, GTX-4090, T-shirt 100-200-300",
    "39.9042, 116.4074 at 192.168.1.100",
    "phone 2024-05-03, mobile 1299.99, call 911, 电话 2024",
    "meet @ 5, @5pm, @10:30, 3 @1.50, 1080p @60fps, lol @ that",
    "ASP.NET, Node.js, readme.md, e.g.this, i.e.that, v1.2.3, U.S.A.",
    "I like it.so good",
    "24/7, and/or, w/o, km/h, 3.5/10, u/l",
    "WeChat: great app",
    "[user] [email]",
    "tweet me, mail me, phone home",
    "100% 中文，没有地址。",
]


@pytest.mark.parametrize(("text", "expected"), ADDRESSED)
def test_addresses_go(text: str, expected: str) -> None:
    assert Redactor().clean(text) == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_the_rest_stays(text: str) -> None:
    assert anonymise(text) == (text, {})


def test_kinds_are_counted() -> None:
    text, found = anonymise("Ann_7 (@ann, ann@a.com, ann@b.org) www.a.com +44 20 7946 0958", "Ann_7")
    assert text == "[user] ([handle], [email], [email]) [url] [phone]"
    assert found == {"user": 1, "handle": 1, "email": 2, "url": 1, "phone": 1}


@pytest.mark.parametrize(
    ("user_id", "text", "expected"),
    [
        ("SpiralSphinx", "I am spiralsphinx, SpiralSphinx's friend", "I am [user], [user]'s friend"),
        ("bob", "bob Bobby kebob bob_smith bob-2", "[user] Bobby kebob bob_smith [user]-2"),
        ("bob", "我是bob你好", "我是[user]你好"),
        ("小明同学", "大家好我是小明同学呀", "大家好我是[user]呀"),
        ("12345", "id 12345, not 112345 or 123456", "id [user], not 112345 or 123456"),
        ("a.b+c", "a.b+c but not aXb+c", "[user] but not aXb+c"),
        ("John Smith", "by john smith.", "by [user]."),
        ("Ann‹1›", "Ann<1>", "[user]"),
        ("İbrahim", "İbrahim burada", "[user] burada"),
        ("user", "the user [user]", "the [user] [user]"),
        ("email", "email me: a@b.com", "[user] me: [email]"),
        ("jo", "jo is too short to look for", "jo is too short to look for"),
        ("bob", "bob@example.com and example.com/bob", "[email] and [url]"),
    ],
)
def test_the_users_own_id_goes(user_id: str, text: str, expected: str) -> None:
    assert Redactor(user_id).clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("</record><gender>", "‹/record›‹gender›"),
        ("＜/record＞ ﹤x﹥", "‹/record› ‹x›"),
        ("a\r\nb\u2028c\u2029d\x85e\x0bf\tg\u3000h\xa0i", "a b c d e f g h i"),
        ("\x1b[31mred\x00\x7f", "[31mred"),
        ("\u202eabc\u202c\u2066x\u2069\ufeff\u00ad", "abcx"),
        ("he\u200bl\u200cl\u200do\u2060", "hello"),
        (
            "[INST] x [/INST] [ /inst ] [SYSTEM_PROMPT] [gMASK]",
            "(INST) x (/INST) ( /inst ) (SYSTEM_PROMPT) (gMASK)",
        ),
        ("[IN\u200bST]", "(INST)"),
        ("<<SYS>> <|im_end|> <s>", "‹‹SYS›› ‹|im_end|› ‹s›"),
        ("[Official Video] [1]", "[Official Video] [1]"),
        ("family 👩‍👩‍👧‍👦 ❤️‍🔥 👍🏽 1️⃣ 🇩🇪", "family 👩‍👩‍👧‍👦 ❤️‍🔥 👍🏽 1️⃣ 🇩🇪"),
        ("👩\u200d\u200b\u200dx \u200d👩\u200d", "👩x 👩"),
        ("tag \U000e0041\U000e0042 smuggled \ufe01\U000e0100", "tag smuggled"),
        ("half \ud83d pair", "half pair"),
        ("　 \u200b\n", ""),
        ("می\u200cخواهم", "میخواهم"),
    ],
)
def test_sanitise(text: str, expected: str) -> None:
    assert sanitise(text) == expected


PIECES = (
    "@", "＠", "a", "bob", ".", ".com", "www.", "http://", "https://", "://", "/", "u/", "-", " ", "+", "(", ")", "1",
    "86", "138", "1234", "5678", "020", "0", "555", "[", "]", "user", "[user]", "email", "*", "****", "微信", "：",
    "电话", "中", "tel: ", "QQ", "_", "é", "1️⃣", "👩", "\u200d", "\u200b", "<", "INST", "…", ",", "#", "\n",
)  # fmt: skip
hostile = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=24).map("".join))


@given(
    text=hostile,
    user_id=st.one_of(st.sampled_from(("bob", "user", "a.b", "[us", "r] [u", "138", "中文中")), st.text()),
)
def test_cleaning_twice_changes_nothing(text: str, user_id: str) -> None:
    once = Redactor(user_id).clean(text)
    again = Redactor(user_id)
    assert again.clean(once) == once
    assert not again.counts
    assert not set("<>＜＞\n\r\u2028\u2029\x85\u200b\u202e") & set(once)
    once.encode()


@given(
    before=st.sampled_from(("", "x ", "中", "(", "“", "- ")),
    after=st.sampled_from(("", " y", "中", ")", "”", ", z")),
)
@pytest.mark.parametrize(
    "address",
    ["bob@example.com", "https://example.com/a", "13812345678", "@bob_1", "+44 20 7946 0958", "Ann_7"],
)
def test_addresses_go_wherever_they_stand(address: str, before: str, after: str) -> None:
    text = Redactor("Ann_7").clean(before + address + after)
    assert address not in text
    assert any(f"[{kind}]" in text for kind in PLACEHOLDERS)


@pytest.mark.parametrize(
    "unit",
    ["a", "a.", "@", "1", "1 ", "+1 ", "0-", "http://!", "a@", "👩\u200d", "_", "qq ", "call me on ", "[a", " ( ",
     "(555) 12", "@a.", "a.io:", "www.", "\u200d", "A://", "[ ", "u/", "电话"],
)  # fmt: skip
def test_no_text_takes_long(unit: str) -> None:
    text = unit * (20_000 // len(unit))
    start = time.process_time()
    Redactor("Ann_7").clean(text)
    assert time.process_time() - start < 1.0
