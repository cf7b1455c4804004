from convnext.report.written import write_page


def test_a_page_is_written_whole_or_told_of(tmp_path):
    told, path = [], tmp_path / "report.html"
    assert write_page(path, lambda: "é – 中", told.append)
    assert path.read_bytes() == "é – 中".encode()

    def fails():
        raise ZeroDivisionError("by zero\nat line 7")

    assert not write_page(path, fails, told.append)
    assert not write_page(path, lambda: "caf\udce9", told.append)  # which no file takes
    assert path.read_bytes() == "é – 中".encode()  # what was there is untouched, never empty
    (tmp_path / "folder").mkdir()
    assert not write_page(tmp_path / "folder", lambda: "text", told.append)
    assert [line.count("\n") for line in told] == [0, 0, 0]
    assert f"the report {path} could not be written (ZeroDivisionError: by zero)" in told[0]
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []
