"""The matrix in the documentation is what the rules say."""

from tests.tools.access_page import PAGE, matrix, page


def test_the_page_is_current():
    assert PAGE.read_text() == page(PAGE.read_text()), "run python -m tests.tools.access_page"


def test_the_matrix_names_everybody_and_nobody_else():
    rows = {line.split("|")[1].strip(): line for line in matrix().splitlines()}
    assert "everybody" in rows["`NodeService/EnrollNode`"]
    assert rows["`TemplateService/RevokeTemplate`"].count("✓") == 1
