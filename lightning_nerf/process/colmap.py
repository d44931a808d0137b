"""Structure from motion by pycolmap, on the CPU."""

from __future__ import annotations

import importlib
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_nerf.checks import BadArgument
from lightning_nerf.process.colmap_mapping import log_to, map_in_process, map_incrementally
from lightning_nerf.process.options import Options
from lightning_nerf.process.sfm import Count, Lens, Model, Pair, Pose

REMEDY = "pip install 'pycolmap>=4.2'"
_OLDEST = (4, 2)
_ENOUGH = 15  # verified matches of a pair, below which the mappers leave it out
_BLOCK = 16  # pairs between two looks at Ctrl-C


def load() -> ModuleType:
    """The module ``pycolmap``.

    Raises:
        BadArgument: with what to install, where it is missing, cannot be loaded or is too old.
    """
    try:
        pycolmap = importlib.import_module("pycolmap")
    except ImportError as error:
        why = "not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise BadArgument(f"pycolmap: {why}, and poses are found by it; {REMEDY}") from error
    version = str(getattr(pycolmap, "__version__", "of unknown version"))
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST or not hasattr(pycolmap, "global_mapping"):
        raise BadArgument(f"pycolmap: expected version >= 4.2, got {version}; pip install --upgrade 'pycolmap>=4.2'")
    return pycolmap


class Colmap:
    """COLMAP's database and mappers.

    Args:
        options: of the command.
        images: the folder of the pictures.
        folder: where the database, the models and the log go.
    """

    def __init__(self, options: Options, images: Path, folder: Path) -> None:
        self._colmap = load()
        self.version = str(self._colmap.__version__)
        self._options, self._images, self._folder = options, images, folder
        self._database = folder / "database.db"
        folder.mkdir(parents=True, exist_ok=True)
        log_to(self._colmap, folder)
        self._colmap.set_random_seed(0)

    def reset(self) -> None:
        """Forget all features and matches."""
        for ending in ("", "-wal", "-shm"):
            self._database.with_name(self._database.name + ending).unlink(missing_ok=True)

    def add_pictures(self, groups: Sequence[Sequence[str]]) -> None:
        """Enter pictures that are not in the database yet, with the focal length of their EXIF data where they have one."""
        with self._open() as database:
            known = {image.name for image in database.read_all_images()}
        for group in groups:
            names = [name for name in group if name not in known]
            if names:
                mode = self._colmap.CameraMode.SINGLE
                self._colmap.import_images(self._database, self._images, mode, names, self._reader())

    def extract(self, names: Sequence[str], count: Count) -> None:
        """SIFT features of the pictures that have none yet. A picture that cannot be decoded gets none."""
        with self._open() as database:
            done = _with_features(database)
        missing = [name for name in names if name not in done]
        if not missing:
            return
        options = self._colmap.FeatureExtractionOptions()
        options.num_threads = self._options.threads
        options.max_image_size = self._options.max_size
        options.use_gpu = False
        with self._watched(lambda database: len(_with_features(database)), count):
            self._colmap.extract_features(
                self._database, self._images, missing, reader_options=self._reader(), extraction_options=options,
                device=self._colmap.Device.cpu,
            )  # fmt: skip

    def match(self, pairs: Sequence[Pair], count: Count) -> None:
        """Match and verify the pairs that are not in the database yet."""
        with self._open() as database:
            ids = {image.name: image.image_id for image in database.read_all_images()}
            known = [(a, b) for a, b in pairs if a in ids and b in ids]  # without pictures that COLMAP cannot read
            missing = [(a, b) for a, b in known if not database.exists_two_view_geometry(ids[a], ids[b])]
        if not missing:
            return
        options = self._colmap.FeatureMatchingOptions()
        options.num_threads = self._options.threads
        options.use_gpu = False
        listed = self._folder / "pairs.txt"
        listed.write_text("".join(f"{a} {b}\n" for a, b in missing), encoding="utf-8")
        pairing = self._colmap.ImportedPairingOptions()
        pairing.match_list_path = str(listed)
        pairing.block_size = _BLOCK
        with self._watched(lambda database: database.num_matched_image_pairs(), count):
            self._colmap.match_image_pairs(self._database, options, pairing, device=self._colmap.Device.cpu)

    def map(self, mapper: str, folder: Path, count: Count) -> list[Path]:
        """Poses by COLMAP's incremental or global mapper, into a folder for each model."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._set_lenses()
        arguments = self._database, self._images, folder, self._options.threads
        if mapper == "global":
            code = map_in_process(*arguments, log=self._folder)
            if code:
                raise BadArgument(f"--mapper: COLMAP's global mapper ended with code {code}; its log is in {self._folder}")
        else:
            map_incrementally(self._colmap, *arguments, count)
        return sorted(path for path in folder.iterdir() if (path / "images.bin").is_file())

    def read(self, folder: Path) -> Model:
        """A model of :meth:`map`."""
        found = self._colmap.Reconstruction(folder)
        lenses = {
            key: Lens(camera.model.name, camera.width, camera.height, tuple(map(float, camera.params)))
            for key, camera in found.cameras.items()
        }
        images = [image for image in found.images.values() if image.has_pose]
        poses = {image.name: Pose(image.camera_id, image.cam_from_world().matrix()) for image in images}
        return Model(lenses, poses, found.num_points3D(), float(found.compute_mean_reprojection_error()))

    def write_points(self, folder: Path, path: Path) -> None:
        """The colored points of a model as PLY."""
        self._colmap.Reconstruction(folder).export_PLY(path)

    def n_features(self) -> dict[str, int]:
        """The number of features of each picture."""
        with self._open() as database:
            images = database.read_all_images()
            return {image.name: database.num_keypoints_for_image(image.image_id) for image in images}

    def n_partners(self) -> dict[str, int]:
        """With how many other pictures each shares at least as many verified matches as the mappers want."""
        with self._open() as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            pairs, inliers = database.read_two_view_geometry_num_inliers()
        counts = Counter(dict.fromkeys(names.values(), 0))
        for pair, n in zip(pairs, inliers, strict=True):
            if n >= _ENOUGH:
                counts.update(names[key] for key in self._colmap.pair_id_to_image_pair(pair))
        return dict(counts)

    def _set_lenses(self) -> None:
        """Give all cameras the lens of the options: features and matches found with another one stay valid."""
        with self._open() as database:
            for old in database.read_all_cameras():
                if old.model.name != self._options.camera_model:
                    focal = old.mean_focal_length()
                    new = self._colmap.Camera.create_from_model_name(
                        old.camera_id, self._options.camera_model, focal, old.width, old.height
                    )
                    new.has_prior_focal_length = old.has_prior_focal_length
                    database.update_camera(new)

    def _reader(self) -> Any:  # pycolmap is imported on use: its classes cannot be named here
        options = self._colmap.ImageReaderOptions()
        options.camera_model = self._options.camera_model
        return options

    def _open(self) -> Any:
        return self._colmap.Database.open(self._database)

    @contextmanager
    def _watched(self, look: Callable[[Any], int], count: Count) -> Iterator[None]:
        """Report what ``look`` finds in the database, twice a second.

        Only pycolmap's own SQLite may open the file: locks of a second copy of that library in one process are void.
        """
        ended = threading.Event()

        def watch() -> None:
            with self._open() as database:
                while not ended.wait(0.5):
                    count(look(database))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        with self._open() as database:
            count(look(database))


def _with_features(database: Any) -> set[str]:
    return {image.name for image in database.read_all_images() if database.exists_keypoints(image.image_id)}
