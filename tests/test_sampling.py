"Properties of every selector, for any scores; the specification's rule; what may guide a choice; what an import costs."
import math, os, resource, subprocess, sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from conftest import ROOT
from vlmtemporal.basics import BadInput
from vlmtemporal.frames import FrameSpec, clip_grid, cut_frames
from vlmtemporal.openpack import sessions
from vlmtemporal.samplers import SELECTORS, get_sampler, greedy_topk, list_samplers, mix, uniform, uniform_ends
from vlmtemporal.sampling import sample_clip
from vlmtemporal.scores import SCORES, entropy, score_frames, score_video, smooth
from vlmtemporal.video import ffmpeg, open_video

finite = st.floats(-1e6, 1e6, width=32)
any_scores = st.one_of(
    arrays(np.float32, st.integers(1, 200), elements=finite),
    arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0, 1, 2])), # ties
    st.builds(lambda n, v: np.full(n, v, np.float32), st.integers(1, 200), finite)) # constants


def test_a_path_is_a_video_too(video):
    known = sample_clip(open_video(video), 3.)
    for place in (video, str(video)): assert (sample_clip(place, 3.).indices == known.indices).all()


@pytest.mark.parametrize('name', list_samplers())
@settings(max_examples=60, deadline=None)
@given(scores=any_scores, k=st.integers(1, 16), seed=st.integers(0, 99))
def test_any_choice_is_sorted_unique_inside_and_complete(name, scores, k, seed):
    chosen = get_sampler(name)(scores, k, seed)
    assert chosen.dtype == np.int64 and len(chosen) == min(k, len(scores))
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < len(scores)
    assert (chosen == get_sampler(name)(scores, k, seed)).all(), 'the same call chooses the same frames'


@pytest.mark.parametrize('name', list_samplers())
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), k=st.integers(1, 16), value=finite)
def test_a_still_clip_gets_even_spacing(name, n, k, value):
    how = get_sampler(name).selector
    if how == 'random': return
    want = uniform_ends if how in ('topk', 'uniform-ends') else uniform
    assert get_sampler(name)(np.full(n, value, np.float32), k).tolist() == want(np.zeros(n), k).tolist()


def by_the_rule(scores, k, min_gap, chosen):
    "The documented greedy rule, written as it reads: repeatedly the best frame that keeps the distance."
    chosen, k = set(chosen), min(k, len(scores))
    for gap in range(min_gap, 0, -1):
        while len(chosen) < k:
            free = [i for i in range(len(scores)) if all(abs(i - c) >= gap for c in chosen)]
            if not free: break
            chosen.add(max(free, key=lambda i: (scores[i], -i)))
    return sorted(chosen)


@settings(max_examples=300, deadline=None)
@given(scores=any_scores, k=st.integers(1, 16), gap=st.integers(1, 12))
def test_gaps_are_kept_or_relaxed_by_the_rule(scores, k, gap):
    if np.ptp(scores) == 0: return
    n = len(scores)
    chosen = greedy_topk(scores, k, gap)
    assert chosen.tolist() == by_the_rule(scores, k, gap, [0, n - 1][:min(k, n)])
    if k > 1: assert {0, n - 1} <= set(chosen.tolist())
    if k > 1 and n > (k - 1)*(2*gap - 1): assert np.diff(chosen).min() >= gap # room for k whatever the scores are
    free = greedy_topk(scores, k, gap, anchors=False)
    assert free.tolist() == by_the_rule(scores, k, gap, []) and scores.argmax() in free
    middles = uniform(scores, min(k, n) - min(k, n)//2).tolist()
    assert mix(scores, k, gap).tolist() == by_the_rule(scores, k, gap, middles)


@settings(max_examples=100, deadline=None)
@given(scores=arrays(np.float64, st.integers(1, 100), elements=finite), cut=st.integers(1, 100))
def test_smoothing_never_looks_ahead(scores, cut):
    assert (smooth(scores)[:cut] == smooth(scores[:cut])).all()


@pytest.mark.parametrize('how', ['stratified', 'inverse'])
@settings(max_examples=100, deadline=None)
@given(scores=arrays(np.float32, st.integers(16, 200), elements=finite), k=st.integers(1, 16))
def test_selectors_keep_their_promise(how, scores, k):
    chosen = SELECTORS[how](scores, k)
    n = len(scores)
    if how == 'stratified': # one frame in each of k equal parts, none higher in it
        edges = np.floor(np.arange(k + 1)*n/k + .5).astype(int)
        assert all(a <= i < b and scores[i] == scores[a:b].max() for i, a, b in zip(chosen, edges, edges[1:]))
    elif np.ptp(scores) > 0: # as many frames left of any place as the density's share says, give or take the collisions
        mass = np.cumsum(scores.astype(float) - scores.min())
        mass /= mass[-1]
        if len(set(np.searchsorted(mass, (np.arange(k) + .5)/k).tolist())) == k:
            assert np.allclose(chosen, np.searchsorted(mass, (np.arange(k) + .5)/k))


def by_the_specification(frames) -> list[int]:
    "The specification's sampler, written as it reads: full pictures, eight frames, a gap of five, both ends."
    scores: list[float] = []
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        counts = np.bincount(grey.ravel(), minlength=256)
        p = counts[counts > 0]/grey.size
        H = -(p*np.log2(p)).sum()
        scores.append(.7*H + .3*scores[-1] if scores else H)
    T, chosen = len(scores), {0, len(scores) - 1}
    for i in sorted(range(T), key=lambda i: (-scores[i], i)):
        if len(chosen) < 8 and all(abs(i - c) >= 5 for c in chosen): chosen.add(i)
    return sorted(chosen)


def encoded(path, w, h, seconds=6) -> object:
    "A video whose light and content change, of any size."
    drawn = f'mandelbrot=s={w}x{h}:r=25:maxiter=99,noise=alls=6:allf=t:all_seed=3,eq=brightness=0.1*sin(n/9):eval=frame'
    encode = '-t', str(seconds), '-c:v', 'mpeg4', '-q:v', '3', str(path)
    subprocess.run([ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', drawn, *encode], check=True)
    return open_video(path)


def clips_of(name, tmp_path):
    "The video, and the starts of three clips of it."
    if not isinstance(name, tuple): return sessions(ROOT/'mock_data')[name].open(), (3., 10.5, 20.)
    return encoded(tmp_path/'odd.mp4', *name), (0., .5, .98)


@pytest.mark.parametrize('name', [0, 7, (161, 97), (322, 241)])
def test_entropy_gives_the_frames_of_the_specification(name, tmp_path):
    video, starts = clips_of(name, tmp_path)
    spec, grids = FrameSpec('entropy'), [clip_grid(video, start) for start in starts]
    want = [by_the_specification(video.read(grid)) for grid in grids]
    assert [sample_clip(video, start, spec).indices.tolist() for start in starts] == want
    spans = [type('Clip', (), dict(id=f'{start:05.2f}', start=start, n_frames=125)) for start in starts]
    assert [chosen.tolist() for _, chosen, _ in cut_frames(video, spans, spec)] == want, 'as `build` cuts them'
    if not isinstance(name, tuple): return
    whole = score_video(video)['entropy']
    assert [get_sampler('entropy')(whole[grid]).tolist() for grid in grids] == want, 'of the whole video'


def test_a_still_stretch_is_decided_by_the_last_digits():
    "Smoothed scores come nearer and nearer to that of a still picture; in single precision they would soon be equal."
    dark, light = (np.random.default_rng(0).integers(0, n, (40, 60, 3), np.uint8) for n in (90, 250))
    frames = np.stack([dark]*60 + [light]*65)
    chosen = get_sampler('entropy')(score_frames(frames)).tolist()
    assert chosen == by_the_specification(frames) and chosen[1] > 75


@pytest.mark.parametrize('shape', [(1, 1), (1, 3), (5, 7), (97, 161), (480, 640), (4097, 4097)])
def test_entropy_counts_every_pixel(shape):
    grey = np.random.default_rng(0).integers(0, 200, shape, np.uint8)//3
    p = np.bincount(grey.ravel())/grey.size
    assert entropy(grey) == pytest.approx(-sum(q*math.log2(q) for q in p if q), abs=1e-12)


OLD = {0: [[0, 14, 22, 29, 38, 43, 53, 124], [0, 91, 96, 101, 107, 112, 117, 124], [0, 88, 94, 99, 106, 111, 116, 124]],
       1: [[0, 5, 10, 15, 20, 84, 109, 124], [0, 5, 87, 102, 107, 112, 118, 124], [0, 54, 59, 73, 109, 114, 119, 124]]}


@pytest.mark.parametrize('n', OLD)
def test_a_recipe_of_the_first_format_gives_the_frames_of_then(n):
    "Its `entropy` looked at thumbnails; the frames are what the version before chose on these clips."
    stored = dict(sampler='entropy', k=8, size=[336, 336], roi=None, context_seconds=0., n_frames=125, fps=25)
    spec, video = FrameSpec.from_dict(stored), sessions(ROOT/'mock_data')[n].open()
    assert spec.sampler == 'entropy-small' and FrameSpec.from_dict(spec.to_dict()) == spec
    assert [sample_clip(video, start, spec).indices.tolist() for start in (3., 10.5, 20.)] == OLD[n]


@pytest.mark.parametrize('split', [None, 'val', 'test', 'inference', 'Train'])
def test_known_boundaries_guide_training_sets_only(split):
    with pytest.raises(BadInput, match='may not guide'):
        get_sampler('entropy')(np.arange(125.), boundaries=[60.], split=split)


def test_boosted_sets_are_refused_by_the_command_line(cli, mock, tmp_path):
    for args in ((), ('--split', 'test'), ('--split', 'val')):
        code, _, err = cli('build', mock, tmp_path/'out', '--boost-boundaries', *args)
        assert code == 2 and 'training sets only' in err and not (tmp_path/'out').exists()


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize('shape', [(1, 1), (3, 5), (16, 9), (1080, 1920)])
def test_scores_of_odd_pictures_are_finite(score, shape):
    frames = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), np.uint8)
    for clip in (frames, frames*0, frames[:1]):
        assert np.isfinite(score_frames(clip, score)).all() and len(score_frames(clip, score)) == len(clip)


@pytest.mark.parametrize('scores, k', [([], 8), ([1, np.nan], 1), ([1., np.inf], 1), ([1., 2.], 0)])
def test_bad_scores_are_one_sentence(scores, k):
    with pytest.raises(BadInput): get_sampler('entropy')(np.array(scores), k)


def test_import_is_quick():
    code = 'import sys, vlmtemporal.sampling; assert not {"torch", "transformers"} & set(sys.modules)'
    def used():
        u = resource.getrusage(resource.RUSAGE_CHILDREN)
        return u.ru_utime + u.ru_stime
    def seconds(program): # of the processor, which others on the machine do not stretch
        begin = used()
        one_thread = os.environ | dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
        subprocess.run([sys.executable, '-c', program], check=True, env=one_thread)
        return used() - begin
    seconds(code) # the first import compiles
    needed = 'import av, cv2, numpy' # what it stands on, on this machine
    assert min(seconds(code)/seconds(needed) for _ in range(5)) < 2
