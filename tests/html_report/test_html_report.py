"""The page as a file: what it says, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command import run
from made_evaluations import provenance, write_evaluation

from corm_jax import report
from corm_jax.config import base_config
from corm_jax.evaluation_files import read_outcomes
from corm_jax.files import write_json

NAMES = ["cat", "dog", "otter"]


class Cells(HTMLParser):
    """Reads the ranking table: the text of each cell by row label and column title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.headers: list[str] = []
        self._cell: list[str] | None = None
        self.feed(re.search(r'<table id="ranking".*?</table>', html, re.DOTALL)[0])

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self._cell))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None and data.strip():
            self._cell.append(data.strip())

    def cell(self, label: str, title: str) -> str:
        place = next(n for n, head in enumerate(self.rows[0]) if head.split(" %")[0] == title)
        return next(row[place] for row in self.rows[1:] if row[1].split()[0] == label)


def page(tmp_path: Path, *directories: Path) -> str:
    output = tmp_path / "report.html"
    assert report.main([*map(str, directories), f"--output={output}"]) == 0
    return output.read_text()


def data_of(html: str) -> dict:
    return json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', html)[1])


def error_of(capsys: pytest.CaptureFixture[str], *directories: Path) -> str:
    output = directories[0].parent / "none.html"
    assert report.main([*map(str, directories), f"--output={output}"]) == 1
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not output.exists()
    return said.err


def test_cells_hold_metrics_with_their_intervals(tmp_path: Path) -> None:
    results = write_evaluation(tmp_path / "erm", "resnet18", names=NAMES)
    found = Cells(page(tmp_path, tmp_path / "erm"))
    for protocol, names in {
        "complement": {"clean": "Clean", "core": "Core"},
        "ablations": {"swapped_background": "Swapped background"},
    }.items():
        for name, title in names.items():
            value = results["protocols"][protocol]["metrics"][name]
            spans = results["protocols"][protocol]["intervals"][name]
            expected = f"{100 * value:.1f}"
            for over in ("images", "classes"):
                expected += " [{:.1f}, {:.1f}]".format(*(100 * end for end in spans[over]))
            assert found.cell("erm", title) == expected
    rcs = results["protocols"]["complement"]["metrics"]["rcs"]
    assert found.cell("erm", "RCS").startswith(f"{rcs:.3f}".replace("-", "\N{MINUS SIGN}"))


def test_the_page_asks_for_nothing_and_is_the_same_again(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, curves=True, pictures=2)
    write_evaluation(tmp_path / "b", "vit_tiny_patch16_224", names=NAMES, seed=1)
    html = page(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "default-src 'none'" in html
    without_namespaces = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.findall(r"""(?:https?:)?//[a-z]""", without_namespaces.split('id="data"')[0])
    assert page(tmp_path, tmp_path / "a", tmp_path / "b") == html
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert used
    assert set(used) <= set(identifiers)


def test_figures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, curves=True)
    write_evaluation(tmp_path / "b", "resnet18", names=NAMES, seed=1)
    html = page(tmp_path, tmp_path / "a", tmp_path / "b")
    figures = re.findall(r"<figure data-columns.*?</figure>", html, re.DOTALL)
    titles = [re.search("<h3>(.*?)</h3>", figure)[1] for figure in figures]
    assert titles == [
        "Clean and core",
        "Clean and swapped background",
        "Spurious and core",
        "RCS by family",
        "Core accuracy and the strength of noise",
        "Spurious accuracy and the strength of noise",
    ]
    for title, figure in zip(titles, figures, strict=True):
        svg = ElementTree.fromstring(re.search("<svg.*</svg>", figure, re.DOTALL)[0])
        assert not re.findall(r"#[0-9a-f]{6}", ElementTree.tostring(svg, encoding="unicode"))
        assert "font-family" not in figure
        rows = {e.get("data-row") for e in svg.iter() if e.get("class") == "point"}
        assert rows == ({"0"} if "noise" in title else {"0", "1"})
        assert ("1 of 2 models were not measured" in figure) == ("noise" in title)
        assert any(e.tag.endswith("}text") and e.text for e in svg.iter())


def test_points_lie_where_their_metrics_are(tmp_path: Path) -> None:
    """Pixels are linear in the metrics: three points tell the two factors, and check them."""
    metrics = []
    for number in range(3):
        results = write_evaluation(tmp_path / f"{number}", "vgg11", names=NAMES, seed=number)
        found = results["protocols"]["complement"]["metrics"]
        metrics.append((found["clean"], found["core"]))
    html = page(tmp_path, *(tmp_path / f"{n}" for n in range(3)))
    figure = re.search(r"<figure data-columns.*?</figure>", html, re.DOTALL)[0]
    svg = ElementTree.fromstring(re.search("<svg.*</svg>", figure, re.DOTALL)[0])
    uses = {
        group.get("data-row"): use
        for group in svg.iter()
        if group.get("class") == "point"
        for use in group.iter("{http://www.w3.org/2000/svg}use")
    }
    places = [(float(uses[n].get("x")), float(uses[n].get("y"))) for n in "012"]
    for axis in (0, 1):
        values, pixels = (np.array([pair[axis] for pair in pairs]) for pairs in (metrics, places))
        slope = (pixels[1] - pixels[0]) / (values[1] - values[0])
        assert (slope > 0) == (axis == 0)
        assert pixels[2] == pytest.approx(pixels[0] + slope * (values[2] - values[0]), abs=0.01)


def test_what_was_not_measured_is_an_empty_cell(tmp_path: Path) -> None:
    levels = {"complement": {"clean": 0.7, "core": 0.5, "spurious": 0.4}}
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, levels=levels)
    write_evaluation(tmp_path / "b", "resnet34", names=NAMES, curves=True)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    results["protocols"]["complement"]["metrics"]["spurious"] = float("nan")
    del results["protocols"]["complement"]["metrics"]["rcs"]
    del results["protocols"]["complement"]["intervals"]["core"]
    (tmp_path / "a" / "results.json").write_text(json.dumps(results))
    html = page(tmp_path, tmp_path / "a", tmp_path / "b")
    found = Cells(html)
    for title in ("Swapped background", "Grey background", "Spurious", "RCS", "Core area"):
        assert found.cell("a", title) == ""
        assert found.cell("b", title) != ""
    assert re.fullmatch(r"[\d.]+", found.cell("a", "Core"))
    models = data_of(html)["classes"]["models"]
    outcomes = [one["name"] for one in data_of(html)["classes"]["outcomes"]]
    assert models[0][outcomes.index("swapped_background")] is None
    assert len(models[1][outcomes.index("swapped_background")]) == 3


def test_without_swapped_backgrounds_the_page_says_so(tmp_path: Path) -> None:
    levels = {"complement": {"clean": 0.7, "core": 0.5, "spurious": 0.4}}
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, levels=levels)
    html = page(tmp_path, tmp_path / "a")
    assert "It was not measured here" in html
    assert "Clean and swapped background" not in html


def test_saturated_rcs_is_flagged(tmp_path: Path) -> None:
    levels = {"complement": {"clean": 2.0, "core": 2.0, "spurious": 2.0}}
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, levels=levels)
    write_evaluation(tmp_path / "b", "resnet18", names=NAMES)
    found = Cells(page(tmp_path, tmp_path / "a", tmp_path / "b"))
    assert found.cell("a", "RCS").endswith("saturated")
    assert "saturated" not in found.cell("b", "RCS")


def test_classes_have_the_accuracies_of_their_images(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, pictures=2)
    classes = data_of(page(tmp_path, tmp_path / "a"))["classes"]
    assert classes["names"] == NAMES
    assert classes["images"] == [6, 6, 6]
    for outcome, values in zip(classes["outcomes"], classes["models"][0], strict=True):
        in_complement = outcome["name"] in ("clean", "core", "spurious")
        protocol = "complement" if in_complement else "ablations"
        measured = read_outcomes(tmp_path / "a" / f"{protocol}.npz")
        found = measured.outcomes[outcome["name"]]
        for label in range(3):
            of_class = measured.label == label
            share = found.correct[of_class].sum() / found.number[of_class].sum()
            assert values[label] == pytest.approx(1000 * share, abs=0.51)


def test_without_examples_classes_have_numbers(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES)
    data = data_of(page(tmp_path, tmp_path / "a"))
    assert data["classes"]["names"] == ["class 0", "class 1", "class 2"]
    assert data["panels"]["sets"] == []


def test_models_of_one_preprocessing_share_their_pictures(tmp_path: Path) -> None:
    other = {"preprocessing__center_crop_share": 1.0}
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, pictures=2)
    write_evaluation(tmp_path / "b", "resnet34", names=NAMES, pictures=2, saliency=False)
    write_evaluation(tmp_path / "c", "resnet34", names=NAMES, pictures=2, **other)
    write_evaluation(tmp_path / "d", "resnet34", names=NAMES)
    panels = data_of(page(tmp_path, *(tmp_path / name for name in "abcd")))["panels"]
    assert [model and model["set"] for model in panels["models"]] == [0, 0, 1, None]
    assert [list(model["saliency"]) for model in panels["models"][:3]] == [
        ["grad_cam"],
        [],
        ["grad_cam"],
    ]
    views = panels["sets"][0]["views"]
    assert list(views)[:2] == ["image", "core_region"]
    assert views["swapped_background"][1] is None  # it has no partner
    assert all(url.startswith("data:image/jpeg;base64,") for url in views["core"])


def test_labels_are_as_long_as_it_takes_to_tell_them_apart(tmp_path: Path) -> None:
    for name in ("x/final", "y/final"):
        write_evaluation(tmp_path / name, "resnet18", names=NAMES)
    html = page(tmp_path, tmp_path / "x" / "final", tmp_path / "y" / "final")
    assert data_of(html)["rows"] == ["x/final", "y/final"]


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"noise__seed": 1, "noise__sigma": 0.5}, "noise.seed, noise.sigma"),
        ({"data__sha256": "c" * 64}, "data.sha256"),
        ({"masks__sha256": "c" * 64, "masks__images": 4}, "masks.images, masks.sha256"),
    ],
)
def test_what_does_not_compare_is_refused(
    changes: dict, keys: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES)
    write_evaluation(tmp_path / "b", "resnet18", names=NAMES, **changes)
    message = error_of(capsys, tmp_path / "a", tmp_path / "b")
    assert f"{tmp_path}/a and {tmp_path}/b do not compare: {keys} differ" in message


def test_protocols_of_other_parameters_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, blur in (("a", 1.0), ("b", 2.0)):
        results = write_evaluation(tmp_path / name, "resnet18", names=NAMES)
        results["protocols"]["ablations"]["parameters"] = {"blur": blur}
        write_json(tmp_path / name / "results.json", results)
    message = error_of(capsys, tmp_path / "a", tmp_path / "b")
    assert "do not compare: ablations.parameters.blur differ" in message


def test_other_preprocessing_and_versions_compare(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES)
    changes = {"preprocessing__mean": [0.5, 0.5, 0.5], "versions__jax": "0.9.0"}
    write_evaluation(tmp_path / "b", "resnet18", names=NAMES, **changes)
    html = page(tmp_path, tmp_path / "a", tmp_path / "b")
    own = html[html.index("Of each model") :]
    assert "preprocessing.mean" in own
    assert "0.5, 0.5, 0.5" in own
    assert "preprocessing.std" not in own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json does not exist"),
        ("{", "is not valid JSON"),
        ("[]", "does not hold the results of an evaluation or of a run"),
        ('{"protocols": {}}', "does not hold the results"),
        ({"protocols": {}}, "holds no metrics yet"),
        ({"protocols": {"complement": {"metrics": {"core": 1}}}}, "does not hold the results"),
        ({"protocols": {"complement": {"metrics": {"core": "x"}}}}, "does not hold the results"),
    ],
)
def test_what_is_no_evaluation_is_one_line(
    content: str | dict | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    if content is not None:
        if isinstance(content, dict):
            content = json.dumps({"provenance": provenance("resnet18", 2), **content})
        (directory / "results.json").write_text(content)
    assert message in error_of(capsys, directory)


def test_one_directory_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES)
    assert "is given twice" in error_of(capsys, tmp_path / "a", tmp_path / "b" / ".." / "a")


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES, pictures=2)
    for name in ("complement.npz", "examples.npz"):
        path = tmp_path / "a" / name
        content = path.read_bytes()
        path.write_bytes(content[:100])
        assert f"{path} cannot be read" in error_of(capsys, tmp_path / "a")
        path.write_bytes(content)


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", "resnet18", names=NAMES)
    output = tmp_path / "pages" / "report.html"
    code, said, errors = run([str(tmp_path / "a"), f"--output={output}"], module="corm_jax.report")
    assert (code, errors) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(output))}: 1 model, 0\.\d MB\n", said)
    assert output.read_text().startswith("<!doctype html>")


def finish(workdir: Path, objective: str, **data: object) -> None:
    """Writes what a run leaves that the page reads."""
    config = base_config(objective)
    config.data.update(data)
    metrics = {"clean": 0.9, "core": 0.75, "spurious": 0.5, "rcs": 1 / 3, "images": 12.0}
    extra = {"clean": 0.625, "clean_plain": 0.5, "images": 30.0, "classes": 5}
    content = report.results(
        config,
        metrics=metrics,
        selection={},
        extra={"counterfactual": extra},
        seconds=1.0,
        skipped=[],
        counts={},
    )
    workdir.mkdir()
    write_json(workdir / "results.json", content)
    write_json(workdir / "config.json", config.to_dict())


def test_runs_have_a_page_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(tmp_path / "erm", "erm")
    finish(tmp_path / "corm", "corm")
    html = page(tmp_path, tmp_path / "erm", tmp_path / "corm")
    found = Cells(html)
    assert found.cell("erm", "Core") == "75.0"  # no intervals are known
    assert found.cell("corm", "Counterfactual") == "62.5"
    assert "model.objective" in html[html.index("Of each model") :]
    assert data_of(html)["classes"]["labels"] == []
    capsys.readouterr()
    finish(tmp_path / "other", "corm", tfds_name="spurious_shapes/tiny")
    message = error_of(capsys, tmp_path / "erm", tmp_path / "other")
    assert "do not compare: data.tfds_name differ" in message
    write_evaluation(tmp_path / "evaluation", "resnet18", names=NAMES)
    message = error_of(capsys, tmp_path / "erm", tmp_path / "evaluation")
    assert "data.sha256" in message
    (tmp_path / "erm" / "config.json").unlink()
    assert "cannot read" in error_of(capsys, tmp_path / "erm")


def test_the_table_and_the_page_are_asked_for_apart(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--output=x.html", "--summary=x.json"])
