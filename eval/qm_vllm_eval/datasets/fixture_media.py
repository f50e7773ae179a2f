"""Images and videos of random pixels for :mod:`qm_vllm_eval.datasets.fixtures`."""

from __future__ import annotations

from pathlib import Path

from qm_vllm_eval.datasets.rows import DataSetError

SIZE = (64, 48)
"""Width and height of images and videos in pixels."""
FRAMES, FRAMES_PER_SECOND = 6, 6


def write_image(file: Path, seed: int) -> None:
    """A JPEG file of random blocks, :data:`SIZE` pixels large.

    Raises:
        DataSetError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataSetError(f"images need Pillow ({error}); run `pip install pillow`") from error
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(SIZE).save(file, "JPEG")


def write_video(file: Path, seed: int) -> str:
    """A video of :data:`FRAMES` random frames; by its ending MJPEG (.avi) or VP8 (.webm).

    Returns:
        "" or, if nothing could be written, why; then there is no file.
    """
    try:
        import cv2
    except ImportError as error:
        return f"no videos: OpenCV is missing ({error}); run `pip install opencv-python-headless`"
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter.fourcc(*("VP80" if file.suffix == ".webm" else "MJPG"))
    writer = cv2.VideoWriter(str(file), code, FRAMES_PER_SECOND, SIZE)
    rng = np.random.default_rng(seed)
    if writer.isOpened():
        for _ in range(FRAMES):
            blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            writer.write(cv2.resize(blocks, SIZE, interpolation=cv2.INTER_CUBIC))
    writer.release()
    if file.is_file() and file.stat().st_size:
        return ""
    file.unlink(missing_ok=True)
    return f"no videos: this OpenCV cannot write {file.suffix}"
