import pytest
from support.spec_tables import MARK, SPECS, TABLES, renew

PAGES = sorted(SPECS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_code(page):
    text = page.read_text()
    assert text == renew(text), "run: PYTHONPATH=tests python -m support.spec_tables"


def test_every_table_stands_in_a_page():
    told = {match[1] for page in PAGES for match in MARK.finditer(page.read_text())}
    assert set(TABLES) <= told
