"""`foreshock report`: a page and a summary."""

from __future__ import annotations


def test_the_page_is_written_and_the_summary_printed(foreshock, runs, tmp_path):
    text = foreshock("report", "runs/spiked", "-o", "out/page.html").output
    assert "spike" in text
    assert "page: out/page.html" in text
    assert "<html" in (tmp_path / "out" / "page.html").read_text().lower()


def test_several_runs_share_a_page_with_the_title_asked_for(foreshock, runs, tmp_path):
    text = foreshock("report", "runs/calm", "runs/spiked", "--title", "before and after").output
    assert "calm" in text
    assert "spiked" in text
    assert "before and after" in (tmp_path / "report.html").read_text()


def test_a_page_that_cannot_be_written_is_an_error_with_its_path(foreshock, runs, tmp_path):
    (tmp_path / "file").touch()
    assert "error: the page 'file/page.html' cannot be written" in foreshock(
        "report", "runs/calm", "-o", "file/page.html", code=2
    ).output
