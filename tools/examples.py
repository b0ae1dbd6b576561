"Cut the page's three examples out of the mock data: vlmtemporal/pages/*.mp4, a person whom `tiny` was not trained on."
from pathlib import Path

import numpy as np

from vlmtemporal.openpack import sessions
from vlmtemporal.twin import mock_data
from vlmtemporal.video import write_video

PAGES = Path(__file__).parent.parent/'vlmtemporal'/'pages'
CUTS = {'tape': ('U0108', 14, 34), 'wrap': ('U0107', 74, 94), 'round': ('U0108', 0, 49)} # subject, seconds


def cut(name: str, subject: str, start: float, end: float):
    video = sessions(mock_data(), (subject,))[0].open()
    frames = video.nearest(np.arange(start, end, 1/video.info.fps))
    write_video(PAGES/f'{name}.mp4', iter(video.read(frames)), video.info.fps, crf=27)


if __name__ == '__main__':
    for name, (subject, start, end) in CUTS.items(): cut(name, subject, start, end)
