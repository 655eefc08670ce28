"""Data sets from their official layouts: real samples, and small trees made here."""

from collections import Counter

import h5py
import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image

from histomae.data.datasets import KINDS, check_dataset, kind_of, only_readable
from histomae.data.datasets import open_dataset as opened
from histomae.errors import ConfigError, DataSetError, LabelError, NotEnoughDataError
from histomae.events import Progress, result_of
from tests.listening import events_of


def put(path, value=128, side_px=24):
    """Write a small picture whose pixels no other value has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    pixels = rng.integers(0, 255, (side_px, side_px, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def told(data):
    return " ".join(data.notes)


class TestReal:
    """The samples of real data sets."""

    @pytest.mark.parametrize(
        ("folder", "kind", "count", "patients"),
        [
            ("BRACS_RoI_samples", "bracs-roi", 6, 6),
            ("UCSB_BreastCancerCell", "ucsb", 18, 3),
            ("BreaKHis_v1", "breakhis", 109, 15),
            ("Dataset_BUSI_with_GT", "busi", 90, 84),
        ],
    )
    def test_it_is_recognised_and_read(
        self, shared_data, folder, kind, count, patients
    ):
        path = shared_data / folder
        assert kind_of(path).name == kind
        data = opened(path)
        assert len(data) == count
        assert len(set(data.patients)) == patients
        assert len(set(data.names)) == count
        pixels = data.read(data.pictures[-1])
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)

    def test_bracs_before_its_release(self, shared_data):
        data = opened(shared_data / "BRACS_RoI_samples")
        assert {data.classes.names[p.label] for p in data.pictures} == {
            *("N", "PB", "UDH", "FEA", "ADH", "DCIS")
        }
        assert {picture.mpp for picture in data.pictures} == {0.25}
        # One of them has an alpha channel.
        assert {data.read(one).shape[2] for one in data.pictures} == {3}
        groups = opened(shared_data / "BRACS_RoI_samples", task="3-groups")
        of_7 = [data.classes.names[label] for label in data.labels]
        of_3 = [groups.classes.names[label] for label in groups.labels]
        assert dict(zip(of_7, of_3, strict=True)) == {
            **dict.fromkeys(("N", "PB", "UDH"), "Benign"),
            **dict.fromkeys(("FEA", "ADH"), "Atypical"),
            "DCIS": "Malignant",
        }

    def test_ucsb(self, shared_data):
        data = opened(shared_data / "UCSB_BreastCancerCell")
        assert Counter(data.labels.tolist()) == {0: 9, 1: 9}
        assert set(data.patients) == {"ytma10", "ytma12", "ytma23"}
        assert "no patients: an array counts as one" in told(data)

    def test_breakhis_by_magnification(self, shared_data):
        data = opened(shared_data / "BreaKHis_v1", task="binary@200")
        assert data.classes.names == ("Benign", "Malignant")
        assert {picture.mpp for picture in data.pictures} == {0.1}
        assert all("-200-" in name for name in data.names)
        with pytest.raises(ConfigError, match="none called 'binary@50'"):
            opened(shared_data / "BreaKHis_v1", task="binary@50")

    def test_a_sample_is_no_whole_download(self, shared_data):
        work = check_dataset(shared_data / "UCSB_BreastCancerCell")
        check = result_of(work)
        assert check.wrong == (
            "wrong count: Benign: 9 pictures, officially 32",
            "wrong count: Malignant: 9 pictures, officially 26",
        )


class TestBracs:
    @pytest.fixture
    def rois(self, tmp_path):
        root = tmp_path / "BRACS_RoI"
        put(root / "train/0_N/BRACS_1_N_1.png")
        put(root / "train/6_IC/BRACS_2_IC_1.png")
        put(root / "val/4_ADH/BRACS_3_ADH_7.png")
        put(root / "test/5_DCIS/BRACS_4_DCIS_2.png")
        return root

    def test_side_class_and_slide_are_told_by_the_tree(self, rois):
        data = opened(rois)
        rows = [(p.side, data.classes.names[p.label], p.slide) for p in data.pictures]
        assert rows == [
            ("train", "N", "BRACS_1"),
            ("train", "IC", "BRACS_2"),
            ("val", "ADH", "BRACS_3"),
            ("test", "DCIS", "BRACS_4"),
        ]
        assert "each slide counts as one of its own" in told(data)

    def test_the_workbook_tells_patients(self, rois):
        book = Workbook()
        book.active.append(["about"])
        sheet = book.create_sheet("WSI_Information")
        sheet.append(["WSI Filename", "Patient Id", "RoI", "WSI label", "Set"])
        for slide, patient in ((1, 7), (2, 7), (3, 8), (4, 9)):
            sheet.append([f"BRACS_{slide}", patient, 1, "N", "Training"])
        book.save(rois.parent / "BRACS.xlsx")
        data = opened(rois)
        assert data.patients.tolist() == [f"patient {p}" for p in (7, 7, 8, 9)]
        assert "no patient told" not in told(data)

    def test_slides_are_listed_with_their_labels(self, tmp_path):
        for name in ("train/BRACS_1.svs", "test/BRACS_2.svs", "test/BRACS_9.svs"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "BRACS.csv").write_text(
            "WSI Filename;Patient Id;RoI;WSI label;Set\n"
            "BRACS_1;7;3;FEA;Training\nBRACS_2;8;0;IC;Testing\nBRACS_3;8;0;N;Testing\n"
        )
        data = opened(tmp_path, task="3-groups")
        assert [(p.slide, p.side, p.patient, p.label) for p in data.pictures] == [
            ("BRACS_1", "train", "patient 7", 1),
            ("BRACS_2", "test", "patient 8", 2),
        ]
        assert "BRACS_9.svs is left out" in told(data)
        assert "BRACS_3 is in BRACS.csv, not here" in told(data)
        with pytest.raises(DataSetError, match="is a whole slide"):
            data.read(data.pictures[0])

    def test_a_patient_on_two_official_sides_is_told(self, rois):
        assert "more than one side" not in told(opened(rois))
        (rois / "BRACS.csv").write_text(
            "WSI Filename,Patient Id,RoI ,WSI label,Set\n"
            "BRACS_1,67,1,N,Training\nBRACS_2,9,1,IC,Training\n"
            "BRACS_3,67,1,ADH,Validation\nBRACS_4,8,1,DCIS,Testing\n"
        )
        note = "patient 67 is on more than one side of the split that comes with"
        assert note in told(opened(rois))

    def test_a_workbook_of_something_else_is_refused(self, rois):
        (rois / "BRACS.csv").write_text("a,b\n1,2\n")
        with pytest.raises(LabelError, match="no sheet with the columns"):
            opened(rois)
        (rois / "BRACS.csv").unlink()
        (rois / "BRACS.xlsx").write_bytes(b"no workbook")
        with pytest.raises(LabelError, match="cannot be read"):
            opened(rois)


class TestBach:
    @pytest.fixture
    def photos(self, tmp_path):
        root = tmp_path / "Photos"
        for folder, prefix in (
            *(("Normal", "n"), ("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv")),
        ):
            for number in (1, 2):
                put(root / folder / f"{prefix}{number:03}.tif")
        return root

    def test_classes_are_folders(self, photos):
        data = opened(photos)
        assert data.labels.tolist() == [1, 1, 2, 2, 3, 3, 0, 0]
        assert {picture.mpp for picture in data.pictures} == {0.42}
        assert data.notes[0].startswith("BACH names no patients")

    def test_its_table_is_compared(self, photos):
        (photos / "microscopy_ground_truth.csv").write_text(
            "n001.tif,Normal\nb001.tif,Invasive\nis001.tif,InSitu\n"
        )
        assert "b001.tif is of another class" in told(opened(photos))

    def test_a_download_is_verified_file_by_file(self, photos):
        (photos / "Normal" / "n002.tif").rename(photos / "Normal" / "odd.tif")
        (photos / "Benign" / "b002.tif").write_bytes(b"II*\0 cut off")
        check_events, check = events_of(check_dataset(photos))
        assert any(isinstance(event, Progress) for event in check_events)
        assert "wrong count: Normal: 1 pictures, officially 100" in check.wrong
        assert "missing: n002.tif" in check.wrong
        assert "missing: n001.tif" not in check.wrong
        assert "extra: Normal/odd.tif" in check.wrong
        assert any(line.startswith("unreadable: b002.tif") for line in check.wrong)
        assert sum("unreadable" in line for line in check.wrong) == 1

    def test_a_whole_download_has_nothing_wrong(self, photos, monkeypatch):
        from dataclasses import replace

        from histomae.data import datasets

        small = replace(
            kind_of(photos),
            counts=dict.fromkeys(("Normal", "Benign", "In situ", "Invasive"), 2),
            names=frozenset(path.name for path in photos.rglob("*.tif")),
        )
        monkeypatch.setattr(datasets, "KINDS", (small,))
        (photos / "readme.txt").write_text("hello")
        assert result_of(check_dataset(photos)).wrong == ()


class TestNct:
    @pytest.fixture
    def tree(self, tmp_path):
        for folder in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"):
            for name in ("BACK", "TUM", "STR"):
                put(tmp_path / folder / name / f"{name}-{folder[:3]}A.tif")
        return tmp_path

    def test_the_folders_are_the_sides(self, tree):
        data = opened(tree)
        assert len(data) == 6
        assert Counter(data.sides.tolist()) == {"train": 3, "test": 3}
        assert {picture.mpp for picture in data.pictures} == {0.5}
        assert "names no patients" in told(data)

    def test_eight_classes_have_no_background(self, tree):
        data = opened(tree, task="8-classes")
        assert len(data) == 4
        assert "BACK" not in data.classes.names
        assert {data.classes.names[label] for label in data.labels} == {"TUM", "STR"}
        nine = opened(tree).classes
        assert data.classes.color_of("TUM") == nine.color_of("TUM")


class TestPcam:
    @pytest.fixture
    def files(self, tmp_path):
        rng = np.random.default_rng(0)
        for side, count in (("train", 5), ("valid", 2), ("test", 3)):
            stem = tmp_path / f"camelyonpatch_level_2_split_{side}"
            pixels = rng.integers(0, 255, (count, 96, 96, 3), np.uint8)
            with h5py.File(f"{stem}_x.h5", "w") as file:
                file["x"] = pixels
            with h5py.File(f"{stem}_y.h5", "w") as file:
                file["y"] = (np.arange(count) % 2).reshape(-1, 1, 1, 1)
            lines = [
                f"{row},{row * 100},0,False,False,{side}_{row // 2}"
                for row in range(count)
            ]
            (tmp_path / f"{stem.name}_meta.csv").write_text(
                "\n".join(
                    [",coord_x,coord_y,tumor_patch,center_tumor_patch,wsi", *lines]
                )
            )
        return tmp_path

    def test_rows_are_pictures(self, files):
        data = opened(files)
        assert Counter(data.sides.tolist()) == {"train": 5, "val": 2, "test": 3}
        assert data.labels[:5].tolist() == [0, 1, 0, 1, 0]
        assert data.patients[:3].tolist() == ["train_0", "train_0", "train_1"]
        assert data.names[1] == "camelyonpatch_level_2_split_train_x.h5#1"
        assert data.pictures[1].box_l0 == (100, 0, 484, 384)
        with h5py.File(files / "camelyonpatch_level_2_split_train_x.h5") as file:
            np.testing.assert_array_equal(data.read(data.pictures[3]), file["x"][3])

    def test_without_a_table_no_slide_is_known(self, files):
        for table in files.glob("*.csv"):
            table.unlink()
        data = opened(files)
        assert len(set(data.patients)) == len(data)
        assert "meta.csv is missing" in told(data)

    def test_what_does_not_fit_is_refused(self, files):
        with h5py.File(files / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
            file["y"] = np.zeros((7, 1, 1, 1))
        with pytest.raises(DataSetError, match="7 labels"):
            opened(files)
        (files / "camelyonpatch_level_2_split_test_y.h5").unlink()
        (files / "camelyonpatch_level_2_split_test_y.h5").write_bytes(b"cut off")
        with pytest.raises(DataSetError, match="cannot be read"):
            opened(files)

    def test_packed_files_are_told(self, tmp_path):
        (tmp_path / "camelyonpatch_level_2_split_train_x.h5.gz").touch()
        with pytest.raises(DataSetError, match=r"unpack its files \(.gz\)"):
            opened(tmp_path)


class TestOwn:
    @pytest.fixture
    def folders(self, tmp_path):
        root = tmp_path / "mine"
        for number in range(3):
            put(root / "carcinoma" / f"{number}.png", number)
            put(root / "adenosis" / f"{number}.jpg", 10 + number)
        return root

    def test_a_folder_for_each_class(self, folders):
        data = opened(folders)
        assert kind_of(folders).name == "folders"
        assert data.classes.names == ("adenosis", "carcinoma")
        assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.names[0] == "adenosis/0.jpg"
        assert "names no patients" in told(data)

    def test_folders_may_stand_below_sides(self, tmp_path):
        for side in ("train", "test"):
            for name in ("a", "b"):
                put(tmp_path / side / name / "1.png")
        data = opened(tmp_path)
        assert [(p.side, p.label) for p in data.pictures] == [
            *(("test", 0), ("test", 1), ("train", 0), ("train", 1))
        ]

    def table(self, folders, text):
        path = folders / "labels.csv"
        path.write_text(text)
        return path

    def test_a_table(self, folders):
        path = self.table(
            folders,
            "path;label;patient;split;mpp\ncarcinoma/0.png;IC;p1;train;0.5\n"
            "adenosis/0.jpg;A;p2;test;\nadenosis/1.jpg;A;p2;Testing;0.25\n",
        )
        data = opened(path)
        assert data.classes.names == ("A", "IC")
        assert [(p.label, p.patient, p.side, p.mpp) for p in data.pictures] == [
            (1, "p1", "train", 0.5),
            (0, "p2", "test", None),
            (0, "p2", "test", 0.25),
        ]
        assert "adenosis/0.jpg has no pixel size told" in told(data)
        assert "A, IC have one patient only" in told(data)

    @pytest.mark.parametrize(
        ("text", "error", "words"),
        [
            ("file,label\na,b\n", LabelError, "no column 'path'"),
            (
                "path,label\ncarcinoma/0.png,a\ncarcinoma/0.png,b\n",
                LabelError,
                "carcinoma/0.png twice",
            ),
            ("path,label\nx.png,a\n", DataSetError, "x.png is named in"),
            ("path,label\ncarcinoma/0.png,a\n", NotEnoughDataError, "too few classes"),
            (
                "path,label,mpp\ncarcinoma/0.png,a,40x\nadenosis/0.jpg,b,\n",
                LabelError,
                "'40x' µm per pixel",
            ),
            (
                "path,label,split\ncarcinoma/0.png,a,left\nadenosis/0.jpg,b,\n",
                LabelError,
                "on the side 'left'",
            ),
        ],
    )
    def test_a_wrong_table_is_refused(self, folders, text, error, words):
        with pytest.raises(error, match=words):
            opened(self.table(folders, text))

    def test_an_unreadable_picture_is_named(self, folders):
        (folders / "carcinoma" / "1.png").write_bytes(b"\x89PNG cut off")
        data = opened(folders)
        with pytest.raises(DataSetError, match=r"1 of 6 pictures.*1\.png cannot be"):
            result_of(only_readable(data))
        good = result_of(only_readable(data, skip_unreadable=True))
        assert len(good) == 5
        assert good.notes[-1].startswith("1 of 6 pictures cannot be read")


class TestRegistry:
    def test_every_kind_says_what_it_needs(self):
        names = [kind.name for kind in KINDS]
        assert len(set(names)) == len(names) == 10
        for kind in KINDS[:8]:
            assert kind.citation
            assert kind.disk_gb
            assert kind.total
            assert kind.tasks

    @pytest.mark.parametrize(
        ("name", "total"),
        [
            ("bracs-roi", 4539),
            ("bracs-wsi", 547),
            ("bach", 400),
            ("breakhis", 7909),
            ("ucsb", 58),
            ("busi", 780),
            ("pcam", 327680),
            ("nct-crc", 107180),
        ],
    )
    def test_official_counts_add_up(self, tmp_path, name, total):
        assert kind_of(tmp_path, name).total == total

    def test_a_folder_of_none_is_refused(self, tmp_path):
        with pytest.raises(DataSetError, match=r"no data set that is known.*table"):
            opened(tmp_path)
        with pytest.raises(DataSetError, match="does not exist"):
            opened(tmp_path / "absent")
        with pytest.raises(ConfigError, match="'imagenet' is not known"):
            opened(tmp_path, "imagenet")
        for kind in KINDS[:8]:
            with pytest.raises(DataSetError, match="Choose"):
                opened(tmp_path, kind.name)

    def test_a_wrong_task_names_the_right_ones(self, shared_data):
        with pytest.raises(ConfigError, match="Choose 7-classes, 3-groups"):
            opened(shared_data / "BRACS_RoI_samples", task="binary")
