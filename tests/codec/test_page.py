"""The page "what can cross" and the adapters say the same."""

import page


def test_the_page_has_the_table_of_the_adapters():
    assert page.PAGE.read_text(encoding="utf-8") == page.page_with_table(), "run: python tests/codec/page.py"


def test_every_adapter_says_what_arrives_and_how():
    for adapter in page.adapters():
        assert adapter.crosses and adapter.memory, adapter.name
        root = adapter.name.partition(".")[0]
        installed = {"PIL": "pillow", "class": adapter.library}.get(root, root if root in page.FAMILIES else "")
        standard = page.FAMILIES[root].endswith(("codec_standard", "codec_classes"))
        assert standard or adapter.library == installed, adapter.name
