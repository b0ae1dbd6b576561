"""Chapter 0's speed: what scoring costs beside decoding, and what one pass over a session saves.

    python bench/sampling.py [--root mock_data] [--runs 3]

Prints one row a measurement: the median over the runs, and the ratio to the row that it is measured against.
"""
import argparse, statistics, time

from vlmtemporal.clips import boundary_clips
from vlmtemporal.dataset import cut
from vlmtemporal.openpack import sessions
from vlmtemporal.sampling import sample_clip
from vlmtemporal.scores import score_frames
from vlmtemporal.twin import mock_data


def seconds(work) -> float:
    begin = time.perf_counter(); work()
    return time.perf_counter() - begin


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--root', default=None); p.add_argument('--runs', type=int, default=3)
    a = p.parse_args()
    session = sessions(a.root or mock_data(), ('U0108',))[0]; video = session.open(); clips = boundary_clips(session, video.info.duration)
    work = {
        'decode a session': lambda: sum(len(b) for _, b in video.blocks()),
        'decode and score it (entropy)': lambda: score_frames(f for _, b in video.blocks() for f in b),
        'cut all clips in one pass': lambda: list(cut(video, clips)),
        'cut each clip by itself': lambda: [sample_clip(video, c.start) for c in clips],
    }
    taken = {name: [] for name in work}
    for _ in range(a.runs): # in turn, so that a drift of the machine's speed meets all of them
        for name, f in work.items(): taken[name].append(seconds(f))
    median = {name: statistics.median(t) for name, t in taken.items()}; base = median['decode a session']
    print(f'{session.key}: {len(video)} frames of {video.info.width}x{video.info.height}, {len(clips)} clips, median of {a.runs} runs\n')
    print('| work | frames/s | of decoding\'s throughput |\n| --- | ---: | ---: |')
    for name in work: print(f'| {name} | {len(video)/median[name]:.0f} | {base/median[name]:.2f} |')


if __name__ == '__main__': main()
