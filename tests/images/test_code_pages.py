import pytest

from convoy.images.code_pages import find

WORDS = {
    "utf-8": "Äpfel 猫 кошка",
    "cp437": "Äpfel Vögel Bär café Größe naïve piñata ägypten",
    "cp850": "Ølberg Álbum São corações Fjørd",
    "cp1252": "Äpfel Vögel Bär café Größe São corações ñandú crème brûlée Fjørd Ålesund",
    "cp932": "猫 犬 ねこ 写真 表示 ネコ りんご 東京タワー コスプレ ソート",
    "gbk": "苹果 香蕉 狗 新建文件夹 照片 红色 汽车 训练集",
    "cp866": "кошка собака Яблоко Папка",
    "cp1251": "кошка собака Яблоко Папка",
}


@pytest.mark.parametrize("page", WORDS)
def test_the_code_page_of_names_is_found_by_evidence(page):
    words = WORDS[page].split()
    for chosen in (*([word] for word in words), words):
        packed = [f"train/{word}/1.png".encode(page) for word in chosen]
        found = find(packed)
        assert found
        assert [name.decode(found) for name in packed] == [f"train/{word}/1.png" for word in chosen]


def test_names_of_ascii_need_no_code_page():
    assert find([b"cat/1.png", b"dog/1.png"]) is None
    assert find([]) is None


@pytest.mark.parametrize("name", [b"a\xb0b\xb1c", b"x\xac\xbd x"])
def test_names_that_make_no_sense_have_none(name):
    assert find([name]) is None


def test_many_names_are_judged_by_a_part_of_them():
    assert find(f"猫/{n}-ねこ.png".encode("cp932") for n in range(20_000)) == "cp932"
