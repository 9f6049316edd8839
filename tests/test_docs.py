"""The generated pages say what the registries say."""

from __future__ import annotations

import pytest

from docs.generate import HERE, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_make_docs_writes(name: str) -> None:
    assert (HERE / name).read_text(encoding="utf-8") == "\n".join(PAGES[name]()) + "\n", "run `make docs`"
