"One recorded session in eleven containers and codecs is built to the same examples."
import shutil, subprocess, warnings

import numpy as np
import pytest

from vlmtemporal.basics import VLMTemporalWarning
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.openpack import sessions
from vlmtemporal.shards import Shards
from vlmtemporal.twin import make_twin
from vlmtemporal.video import ffmpeg

X264 = '-c:v', 'libx264', '-preset', 'veryfast', '-crf', '12'
MPEG2 = '-c:v', 'mpeg2video', '-q:v', '2', '-bf', '2'
LOSSY = { # suffix -> arguments
    'mp4': (*X264, '-bf', '3', '-x264-params', 'open-gop=1'), 'mov': ('-c:v', 'prores_ks', '-profile:v', '1'),
    'mkv': ('-c:v', 'libx265', '-preset', 'ultrafast', '-crf', '12', '-x265-params', 'log-level=error:pools=1'),
    'webm': ('-c:v', 'libvpx-vp9', '-b:v', '2M', '-deadline', 'realtime', '-cpu-used', '8'),
    'avi': ('-c:v', 'mpeg4', '-q:v', '2', '-bf', '2', '-tag:v', 'XVID'), 'ts': (*X264, '-bf', '3'),
    'm2ts': (*X264, '-f', 'mpegts', '-mpegts_m2ts_mode', '1'), 'mpg': MPEG2, 'flv': (*X264, '-bf', '3'),
    'wmv': ('-c:v', 'wmv2', '-q:v', '2'), 'ogv': ('-c:v', 'libtheora', '-q:v', '10'),
}
LOSSLESS = 'mp4', 'mkv', 'ts', 'mov', 'flv' # x264 without quantising


@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    "One session of one box."
    return make_twin(tmp_path_factory.mktemp('twin'), subjects=1, boxes=1, size=(160, 120), crf=12)


def recorded_as(twin, folder, suffix, arguments):
    "The twin with its video written anew; skipped where this FFmpeg cannot."
    root = folder/suffix
    shutil.copytree(twin, root)
    source = sessions(root)[0].source
    command = [ffmpeg(), '-v', 'error', '-i', source, '-pix_fmt', 'yuv420p', '-threads', '1', *arguments]
    new = source.with_suffix(f'.new.{suffix}')
    if 'prores_ks' in arguments: command[command.index('yuv420p')] = 'yuv422p10le'
    done = subprocess.run([*map(str, command), str(new)], capture_output=True, text=True)
    if done.returncode: pytest.skip(done.stderr[-200:])
    source.unlink()
    new.rename(source.with_suffix(f'.{suffix}'))
    return root


def examples(root, spec):
    "Key -> example, of a data set built of one session, which nothing was said about."
    with warnings.catch_warnings():
        warnings.simplefilter('error', VLMTemporalWarning)
        built, = build(root, root/'shards', spec=spec)
    assert built.examples > 10 and not built.lacking
    return {e.key: e for e in Shards(root/'shards'/'train')}


@pytest.fixture(scope='module')
def want(twin, tmp_path_factory):
    "What the recording itself is built to: by even steps, and where the score has its peaks."
    return {sampler: examples(shutil.copytree(twin, tmp_path_factory.mktemp('want')/'twin'),
                              FrameSpec(sampler, size=(96, 72))) for sampler in ('uniform', 'entropy')}


def check_same(got, want, most):
    "The same clips, answers and frames; pictures differ by less than `most` grey levels in the mean."
    assert list(got) == list(want)
    for key, e in want.items():
        g = got[key]
        assert (g.answer, g.start, g.boundary, g.session) == (e.answer, e.start, e.boundary, e.session)
        assert g.indices.tolist() == e.indices.tolist(), key
        assert np.abs(g.frames.astype(int) - e.frames).mean() < most, key


@pytest.mark.parametrize('suffix', LOSSY)
def test_eleven_containers_and_codecs_build_to_the_same_examples(twin, want, tmp_path, suffix):
    root = recorded_as(twin, tmp_path, suffix, LOSSY[suffix])
    check_same(examples(root, FrameSpec('uniform', size=(96, 72))), want['uniform'], 4)


@pytest.mark.parametrize('suffix', LOSSLESS)
def test_without_loss_the_peaks_of_a_score_are_the_same_frames(twin, want, tmp_path, suffix):
    "What is coded coarser has other peaks; what is coded without loss has not, whatever it is carried in."
    root = recorded_as(twin, tmp_path, suffix, ('-c:v', 'libx264', '-preset', 'ultrafast', '-qp', '0', '-bf', '2'))
    check_same(examples(root, FrameSpec('entropy', size=(96, 72))), want['entropy'], 1)
