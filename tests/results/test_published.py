"""The published rows are well formed and sourced, and each architecture and protocol gets its own."""

from pathlib import Path

import pandas as pd
import pytest

from results import __main__ as command
from results import published, record
from results.columns import COLUMNS, EXTRA_COLUMNS
from tests.results.entries import entry, shown

UNPUBLISHED = ("LIN fast", "LIN sweep", "ADE20k kNN", "VOC kNN")  # or under another column's heading
HEADINGS = [heading for heading, *_ in (*COLUMNS, *EXTRA_COLUMNS) if heading not in UNPUBLISHED]
C4 = {"protocol": {"recipe": "mask_rcnn_resnet_c4_1x_coco"}}
HAND = {  # typed from the sources, row by row: COCO and LVIS box, mask; the paper's own table first
    ("ViT-B/16", ()): """
        MoCo-v3    FT 83.0 LIN 76.7 1% 63.4 COCO 47.9 42.7 ADE 47.3 LVIS 37.3 25.5 35.3 25.8 ROB 32.4 49.8 35.9 55.4
        MAE        FT 83.6 LIN 68.0 1% 51.1 COCO 51.6 45.9 ADE 48.1 LVIS 40.1 29.3 38.1 29.1 ROB 35.9 48.3 34.5 48.3
        SiameseIM  FT 84.1 LIN 78.0 1% 65.1 COCO 52.1 46.2 ADE 51.1 LVIS 40.5 30.9 38.1 30.1 ROB 43.8 52.5 38.3 57.1
    """,
    ("ViT-B/16", ("mugs", "moca", "ibot", "simmim", "cae")): """
        Mugs       FT 84.3 LIN 80.6 kNN 78.0
        MOCA       FT 83.6 LIN 79.5 1% 72.4 kNN 77.4
        iBOT       FT 84.0 LIN 79.5 ADE 50.0 FROZEN 38.3 kNN 77.1
        SimMIM     FT 83.8 LIN 56.7
        CAE        FT 83.9 LIN 70.3 ADE 50.3
    """,
    ("ViT-S/16", ("dino", "ibot", "msn", "mugs@800", "simmim")): """
        DINO       FT 81.5 LIN 77.0 1% 64.5 kNN 74.5
        iBOT       FT 82.3 LIN 77.9 ADE 45.4 kNN 75.2
        MSN        LIN 76.6 kNN 73.3
        Mugs       FT 82.6 LIN 78.9 1% 66.9 kNN 75.6
        SimMIM     FT 81.7
    """,
    ("ViT-L/16", ("mae", "ibot", "mugs", "data2vec", "ijepa")): """
        MAE        FT 85.9 LIN 75.8 COCO 55.5 49.2 ADE 53.6 LVIS 46.1 - 43.6 - ROB 57.1 59.9 45.3 58.2
        iBOT       FT 84.8 LIN 81.0 kNN 78.0
        Mugs       FT 85.2 LIN 82.1 kNN 80.3
        data2vec   LIN 77.3
        I-JEPA     LIN 77.5
    """,
    ("ResNet-50", ("random init", "simclr@200", "byol@200", "swav@200", "simsiam@200", "simsiam (optimal)")): """
        random_init        COCO 26.4 29.3 VOC 60.2 33.8 33.1
        SimCLR             LIN 68.3 COCO 37.9 33.3 VOC 81.8 55.5 61.4
        BYOL               LIN 70.6 COCO 37.9 33.2 VOC 81.4 55.3 61.1
        SwAV               LIN 69.1 COCO 37.6 33.1 VOC 81.5 55.4 61.4
        SimSiam            LIN 70.0 COCO 37.9 33.2 VOC 82.0 56.4 62.8
        SimSiam_(optimal)  COCO 39.2 34.4 VOC 82.4 57.0 63.7
    """,
}
SEVERAL = {
    "COCO": ("COCO box", "COCO mask"),
    "ADE": ("ADE20k mIoU",),
    "FROZEN": ("ADE20k linear",),
    "LVIS": ("LVIS box", "LVIS box rare", "LVIS mask", "LVIS mask rare"),
    "ROB": ("IN-A", "IN-R", "IN-Sketch", "IN-C"),
    "VOC": ("VOC AP50", "VOC AP", "VOC AP75"),
}


def typed(text: str) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for line in text.strip().splitlines():
        name, *words = line.split()
        own = rows[name.replace("_", " ")] = {}
        while words:
            headings = SEVERAL.get(words[0], (words[0],))
            values, words = words[1 : 1 + len(headings)], words[1 + len(headings) :]
            own |= {heading: float(value) for heading, value in zip(headings, values, strict=True) if value != "-"}
    return rows


def test_every_number_is_well_formed_and_sourced() -> None:
    table = pd.read_csv(published.FILE).fillna({"note": ""})
    place = ["row", "architecture", "pretrain_data", "pretrain_epochs", "column", "group"]
    assert len(table) > 600 and not table.duplicated(place).any()
    assert table["value"].between(1, 100).all() and set(table["column"]) == set(HEADINGS)
    assert set(table["standing"]) == {"same", "close", "other"} and set(table["status"]) == {"read", "quoted"}
    assert set(table["group"]) == set(published.PROTOCOLS), "a group without words, or words without a number"
    assert set(table[table["standing"] == "other"]["group"]) == {"coco_suspect"}
    assert table["source"].str.len().min() > 10 and table["row"].str.len().min() > 1
    assert not table["group"].str.contains("_odd|one_ft").any(), "mean errors and fine-tuned 1 % are other questions"
    corrupted = table[table["column"] == "IN-C"]
    assert len(corrupted) > 5 and corrupted["group"].eq("rob_ft").all()
    mce = corrupted["note"].str.extract(r"100 - (?:mCE )?([\d.]+)")[0].dropna().astype(float)
    assert len(mce) > 5 and (mce + corrupted.loc[mce.index, "value"]).sub(100).abs().max() < 1e-9
    for architecture, names in published.DEFAULTS.items():
        rows, notes = published.rows(architecture, names, dict.fromkeys(HEADINGS))
        assert len(rows) == len(names) and not notes


@pytest.mark.parametrize(("architecture", "baselines"), HAND)
def test_the_table_of_an_architecture_is_the_one_typed_by_hand(architecture: str, baselines: tuple[str, ...]) -> None:
    measured: dict = dict.fromkeys(HEADINGS)
    if architecture == "ResNet-50":
        measured |= {"COCO box": C4, "COCO mask": C4}
    rows, notes = published.rows(architecture, baselines, measured)
    assert {name: {heading: cell.value for heading, cell in own.items()} for name, own in rows.items()} == typed(
        HAND[architecture, baselines]
    )
    assert not notes


def test_numbers_of_another_protocol_are_marked_and_those_of_this_one_are_not() -> None:
    rows, _ = published.rows("ViT-B/16", (), dict.fromkeys(HEADINGS))
    marked = {(name, heading) for name, own in rows.items() for heading, cell in own.items() if cell.marks}
    assert marked == {("MoCo-v3", heading) for heading in ("FT", "LIN", "COCO box", "COCO mask")}
    assert "Table 4 of the MAE paper" in rows["MoCo-v3"]["COCO box"].marks[0]
    rows, _ = published.rows("ViT-B/16", ("CLIP (FT-CLIP)", "beit"), dict.fromkeys(HEADINGS))
    assert any("pretrained with WIT-400M" in mark for mark in rows["CLIP (FT-CLIP)"]["FT"].marks)
    assert any("not read in its paper" in mark for mark in rows["BEiT"]["FT"].marks)


def test_a_resnets_numbers_are_of_the_measured_protocol_alone() -> None:
    by_preset = {}
    for preset in ("simsiam", "moco"):
        rows, _ = published.rows("ResNet-50", ("mocov2@800",), {"LIN": {"preset": preset}})
        by_preset[preset] = next(iter(rows.values()))["LIN"].value
    assert by_preset == {"simsiam": 72.2, "moco": 71.1}
    fpn = {"protocol": {"recipe": "mask_rcnn_resnet_fpn_2x_coco"}}
    rows, _ = published.rows("ResNet-50", ("mocov2@200",), {"COCO box": fpn})
    assert next(iter(rows.values()))["COCO box"].group == "coco_fpn_2x"


def test_a_sweep_is_compared_with_sweeps() -> None:
    rows, _ = published.rows("ViT-S/16", ("dino",), dict.fromkeys(("LIN", "LIN sweep")))
    assert list(rows["DINO"]) == ["LIN sweep"] and rows["DINO"]["LIN sweep"].is_of_this_protocol


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        *(("ResNet-50", name) for name in ("simsiam", "simclr", "moco v1", "moco v2", "swav", "byol")),
        *(("ViT-B/16", name) for name in ("clip (ft-clip)", "moco-v3", "mae", "siameseim")),
    ],
)
def test_each_method_has_its_row(architecture: str, name: str) -> None:
    rows, notes = published.rows(architecture, (name,), dict.fromkeys(HEADINGS))
    assert len(rows) == 1 and not notes


def table_of(tmp_path: Path, *options: str, **changes: str) -> tuple[pd.DataFrame, str]:
    record.write(tmp_path / "records", entry("knn", **changes))
    assert command.main([str(tmp_path), *options]) == 0
    return shown(tmp_path)


def test_the_architecture_of_the_record_chooses_the_rows(tmp_path: Path) -> None:
    table, text = table_of(tmp_path, architecture="ViT-L/16")
    assert list(table.index) == ["MoCo-v3", "iBOT", "MAE", "supervised (DeiT III)", "mine"]
    assert "published rows (ViT-L/16)" in text and table.loc["iBOT", "kNN"] == "78.0"
    table, _ = table_of(tmp_path, encoder="small", encoder_fingerprint="s" * 64, architecture="ViT-S/16")
    assert {"MAE (ViT-L/16)", "DINO (ViT-S/16)"} <= set(table.index), "two architectures are told apart"


def test_an_architecture_without_published_numbers_says_so(tmp_path: Path) -> None:
    table, text = table_of(tmp_path, architecture="ViT (width 64, depth 3, 4 heads)/4")
    assert list(table.index) == ["mine"] and "no published row is of ViT (width 64, depth 3, 4 heads)/4" in text


def test_an_older_record_without_its_architecture_stands_beside_the_papers_rows(tmp_path: Path) -> None:
    table, text = table_of(tmp_path)
    assert list(table.index) == ["MoCo-v3", "MAE", "SiameseIM", "mine"]
    assert "mine: the records do not say which architecture was measured" in text


def test_baselines_are_chosen_by_name_and_those_that_there_are_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, text = table_of(
        tmp_path, "--baselines", "mae,DINO@400,simsiam,Masked Siamese ConvNets", architecture="ViT-B/16"
    )
    assert list(table.index) == ["MAE", "DINO", "mine"]
    assert "simsiam: no published number of ViT-B/16" in text
    assert "Masked Siamese ConvNets: no published number could be found in any source" in text
    assert command.main([str(tmp_path), "--baselines", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert "there is no baseline 'nonsense'; of ViT-B/16 there are: " in error and "SiameseIM" in error


def test_baselines_never_stand_beside_toy_data(tmp_path: Path) -> None:
    record.write(tmp_path / "records", entry("knn", toy_data=True))
    assert command.main([str(tmp_path), "--baselines", "mae"]) == 0
    table, text = shown(tmp_path)
    assert list(table.index) == ["mine"] and "no published row stands beside toy data" in text
