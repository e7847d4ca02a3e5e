"""Drawn drives with exact depth: a camera over a textured road between boxes, some of which come towards it.

The world is static but for the oncoming boxes, lit evenly, and painted with noise of several sizes that fades where a
pixel covers too much of it. Axes are those of cameras: x to the right, y down, z ahead; lengths are in metres.

Shape legend: N frames, S neighbours of a frame, H and W pixels, R rays, K boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from farout.data._find import find
from farout.errors import BadInput, UnknownName

__all__ = ["Drive", "Triplets", "camera_path", "drawn_drive", "triplets"]

HEIGHT = 1.6  # of the camera above the road
FOCAL = 0.58  # of the width of the image, as of KITTI's cameras
PATHS = ("rpy", "xyz")
LATTICES = (0.3, 1.2, 5.0)  # metres between the points of the noise, by size of it
TILE = 64  # points after which noise repeats
FINE = 2  # rays a pixel across and down that colours are the mean of
SHADES = np.array([0.8, 0.9, 1.0])  # of faces across x, y and z


@dataclass(frozen=True)
class Drive:
    """Frames of one camera.

    Attributes
    ----------
    images : float32 array (N, 3, H, W)
        Pixels from 0 to 1.
    depths : float32 array (N, H, W)
        Along the camera's axis, at the middle of each pixel; infinite in the sky.
    moving : bool array (N, H, W)
        Pixels of boxes that move.
    poses : float64 array (N, 4, 4)
        From camera to world.
    intrinsics : float64 array (3, 3)
        To pixels, where the middle of the first pixel lies at (0.5, 0.5).
    """

    images: np.ndarray
    depths: np.ndarray
    moving: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray


@dataclass(frozen=True)
class Triplets:
    """Frames with the one before and the one after each.

    Attributes
    ----------
    targets : float32 array (N, 3, H, W)
    sources : float32 array (N, 2, 3, H, W)
    poses : float32 array (N, 2, 4, 4)
        From the target's camera to the source's.
    intrinsics : float32 array (N, 3, 3)
    depths : float32 array (N, H, W)
        Of the targets.
    moving : bool array (N, H, W)
    """

    targets: np.ndarray
    sources: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    depths: np.ndarray
    moving: np.ndarray


def drawn_drive(
    frames: int = 3,
    shape: tuple[int, int] = (64, 128),
    *,
    oncoming: int = 1,
    path: np.ndarray | None = None,
    seed: int = 0,
) -> Drive:
    """Draw one drive.

    Parameters
    ----------
    frames : int
    shape : (int, int)
        Height and width.
    oncoming : int
        Boxes in the left lane that come towards the camera, each at a speed of its own.
    path : array (frames, 4, 4), optional
        Poses of the camera, from camera to world, such as of :func:`camera_path`; the first stands over the road,
        looking along it. By default it drives ahead, 0.5 to 0.9 m a frame.
    seed : int

    Returns
    -------
    Drive

    Raises
    ------
    BadInput
        There is no frame or pixel, or the path is of another length.

    Examples
    --------
    >>> drive = drawn_drive(2, (32, 64), seed=1)
    >>> drive.images.shape, drive.depths.shape, bool(drive.moving.any())
    ((2, 3, 32, 64), (2, 32, 64), True)
    """
    H, W = shape
    if frames < 1 or H < 1 or W < 1 or oncoming < 0:
        raise BadInput(f"a drive has a frame and a pixel at least, and not {frames} frames of {H} x {W}")
    if path is not None and np.shape(path) != (frames, 4, 4):
        raise BadInput(f"the path of {frames} frames has the shape ({frames}, 4, 4), and not {np.shape(path)}")
    rng = np.random.default_rng(seed)
    scene = _Scene(rng, oncoming)
    poses = np.tile(np.eye(4), (frames, 1, 1)) if path is None else np.asarray(path, float)
    if path is None:
        poses[:, 2, 3] = rng.uniform(0.5, 0.9) * np.arange(frames)
    intrinsics = np.array([[FOCAL * W, 0, W / 2], [0, FOCAL * W, 0.45 * H], [0, 0, 1]])
    images, depths, moving = (
        np.empty((frames, 3, H, W), np.float32),
        np.empty((frames, H, W), np.float32),
        np.empty((frames, H, W), bool),
    )
    for time, pose in enumerate(poses):
        depth, where, _ = scene.hits(_rays(intrinsics, shape, 1) @ pose[:3, :3].T, pose[:3, 3], time)
        depths[time], moving[time] = depth.reshape(H, W), (where >= scene.first_moving).reshape(H, W)
        colours = scene.colours(_rays(intrinsics, shape, FINE) @ pose[:3, :3].T, pose[:3, 3], time, FOCAL * W)
        images[time] = colours.reshape(H, FINE, W, FINE, 3).mean((1, 3)).transpose(2, 0, 1)
    return Drive(images, depths, moving, poses, intrinsics)


def triplets(drives: Sequence[Drive]) -> Triplets:
    """Take every frame that has one before and one after it.

    Raises
    ------
    BadInput
        No drive has three frames.

    Examples
    --------
    >>> triplets([drawn_drive(4, (8, 16)), drawn_drive(3, (8, 16))]).sources.shape
    (3, 2, 3, 8, 16)
    """
    taken = [(drive, i) for drive in drives for i in range(1, len(drive.images) - 1)]
    if not taken:
        raise BadInput("there is no frame between two others; draw drives of three frames or more")
    return Triplets(
        np.stack([drive.images[i] for drive, i in taken]),
        np.stack([drive.images[[i - 1, i + 1]] for drive, i in taken]),
        np.stack([np.linalg.inv(drive.poses[[i - 1, i + 1]]) @ drive.poses[i] for drive, i in taken]).astype(
            np.float32
        ),
        np.stack([drive.intrinsics for drive, _ in taken]).astype(np.float32),
        np.stack([drive.depths[i] for drive, i in taken]),
        np.stack([drive.moving[i] for drive, i in taken]),
    )


def camera_path(name: str, frames: int, every: float = 0.1, start: float = 0.0) -> np.ndarray:
    """Return poses of a real camera in a hand: of the sequences freiburg1 of TUM RGB-D (Sturm et al., IROS 2012).

    Parameters
    ----------
    name : {"xyz", "rpy"}
        Mostly moved, or mostly turned.
    frames : int
    every : float
        Seconds between frames.
    start : float
        Seconds after the beginning.

    Returns
    -------
    float64 array (frames, 4, 4)
        From camera to the first camera.

    Raises
    ------
    UnknownName
    BadInput
        The path is not as long.
    DataMissing
    """
    if name not in PATHS:
        raise UnknownName("path of a camera", name, PATHS)
    with np.load(find("video/camera_trajectories.npz")) as file:
        known = file[name].astype(float)
    times = start + every * np.arange(frames)
    if frames < 1 or times[0] < 0 or times[-1] > known[-1, 0]:
        raise BadInput(
            f"the path '{name}' lasts {known[-1, 0]:.1f} seconds, and {frames} frames end at {times[-1]:.1f}"
        )
    poses = np.tile(np.eye(4), (frames, 1, 1))
    nearest = np.abs(known[:, 0] - times[:, None]).argmin(1)
    poses[:, :3, 3], poses[:, :3, :3] = known[nearest, 1:4], _turns(known[nearest, 4:])
    return np.linalg.inv(poses[0]) @ poses


class _Scene:
    """A road, and boxes on it; those from ``first_moving`` on move."""

    def __init__(self, rng: np.random.Generator, oncoming: int) -> None:
        houses, parked = 10, 4
        side = np.where(np.arange(houses) % 2, 1.0, -1.0)
        kinds = [
            # houses on both sides, cars at the right, and cars that come towards us at the left: x, z, size
            (
                side * rng.uniform(6.5, 9, houses),
                rng.uniform(4, 60, houses),
                rng.uniform([3, 3, 4], [5, 7, 9], (houses, 3)),
            ),
            (rng.uniform(3, 4, parked), 5 + 10 * np.arange(parked) + rng.uniform(0, 5, parked), _cars(rng, parked)),
            (
                rng.uniform(-3, -1.8, oncoming),
                8 + 8 * np.arange(oncoming) + rng.uniform(0, 6, oncoming),
                _cars(rng, oncoming),
            ),
        ]
        x, z, size = (np.concatenate([kind[i] for kind in kinds]) for i in range(3))
        self.first_moving = houses + parked
        self.low = np.stack([x - size[:, 0] / 2, HEIGHT - size[:, 1], z - size[:, 2] / 2], 1)
        self.size = size
        self.speed = np.zeros(len(x))  # metres a frame along z
        self.speed[self.first_moving :] = -rng.uniform(0.4, 0.9, oncoming)
        self.paint = rng.uniform(0.25, 1.0, (len(x) + 1, 3))  # of the boxes, and last of the road
        self.paint[-1] = rng.uniform(0.4, 0.7)
        self.shift = rng.uniform(0, 1000, (len(x) + 1, 2))
        self.noise = rng.uniform(-1, 1, (len(LATTICES), TILE, TILE)).astype(np.float32)
        self.sky = rng.uniform([0.5, 0.6, 0.8], [0.7, 0.8, 1.0])

    def hits(self, rays_R3: np.ndarray, origin: np.ndarray, time: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where rays end: how far (R,), on which box or -1 (R,), and across which axis its face is (R,).

        Rays are as long as one metre of depth; the road counts as no box, and the sky is infinitely far.
        """
        low = self.low.copy()
        low[:, 2] += self.speed * time
        place = origin.astype(np.float32)
        near, far = ((corner - origin).astype(np.float32) for corner in (low, low + self.size))
        depth, box = np.full(len(rays_R3), np.inf, np.float32), np.full(len(rays_R3), -1)
        face = np.ones(len(rays_R3), np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            per_3R = 1 / rays_R3.T.astype(np.float32)
            for k in range(len(low)):  # box by box and axis by axis, since arrays of all are slow
                first, second = near[k, :, None] * per_3R, far[k, :, None] * per_3R
                into, out = np.minimum(first, second), np.maximum(first, second)
                enters = np.maximum(np.maximum(into[0], into[1]), into[2])
                leaves = np.minimum(np.minimum(out[0], out[1]), out[2])
                seen = np.flatnonzero((enters < leaves) & (enters > 0.05) & (enters < depth))
                depth[seen], box[seen], face[seen] = enters[seen], k, into[:, seen].argmax(0)
            road = np.where(per_3R[1] > 0, (HEIGHT - place[1]) * per_3R[1], np.inf)
        on_road = road <= depth
        return np.where(on_road, road, depth), np.where(on_road, -1, box), np.where(on_road, 1, face)

    def colours(self, rays_R3: np.ndarray, origin: np.ndarray, time: int, focal: float) -> np.ndarray:
        """Return the colours (R, 3) that rays see."""
        depth, box, face = self.hits(rays_R3, origin, time)
        seen = np.isfinite(depth)
        far = np.where(seen, depth, 0)
        points = origin + far[:, None] * rays_R3
        points[:, 2] -= np.where(box >= 0, self.speed[box] * time, 0)  # paint moves with its box
        across = np.take_along_axis(points, np.array([[1, 2], [0, 2], [0, 1]])[face], 1) + self.shift[box]
        # a pixel of the road is as long as it is far, and more so where it is seen from the side
        covers = far / focal * np.where(box >= 0, 1, np.maximum(1, far / HEIGHT))
        pattern = np.zeros(len(far), np.float32)
        for lattice, noise in zip(LATTICES, self.noise):
            pattern += np.clip(lattice / np.maximum(covers, 1e-6) / 2 - 0.5, 0, 1) * _smooth(noise, across / lattice)
        found = self.paint[box] * SHADES[face][:, None] * (0.6 + 0.35 * pattern[:, None])
        return np.where(seen[:, None], found, self.sky).clip(0, 1)


def _cars(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform([1.6, 1.4, 3.5], [2.0, 2.2, 5.0], (count, 3))


def _rays(intrinsics: np.ndarray, shape: tuple[int, int], fine: int) -> np.ndarray:
    """Return rays of depth 1 (fine H * fine W, 3) of a camera at rest, row by row."""
    H, W = shape
    y, x = (np.indices((fine * H, fine * W)) + 0.5) / fine
    pixels = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)
    return pixels @ np.linalg.inv(intrinsics).T


def _smooth(noise: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Read noise between its points, bilinearly along smooth steps; it repeats."""
    whole = np.floor(places)
    u, v = (places - whole).T.astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = whole.T.astype(np.int64) % TILE
    up, right = (i + 1) % TILE, (j + 1) % TILE
    return (1 - u) * ((1 - v) * noise[i, j] + v * noise[i, right]) + u * ((1 - v) * noise[up, j] + v * noise[up, right])


def _turns(quaternions: np.ndarray) -> np.ndarray:
    """Turn quaternions (n, 4), the real part last, into matrices (n, 3, 3)."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)
