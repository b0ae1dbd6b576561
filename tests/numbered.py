"""Frames that carry their number, files made of them in every way that cameras and programs write, and what a decoder
shows of a file that it reads from its start: the truth that reading by number is compared with."""
import random, subprocess
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import av
import numpy as np

from vlmtemporal.video import ffmpeg

BITS = 12
SURE = 40 # grey levels between a bar and its opposite


# ---- one frame -------------------------------------------------------------------------------------------------------
def draw(number, width=128, height=72):
    "The number as twelve bars, low bit first, their opposites below; red at the lower left, blue at the lower right."
    frame = np.full((height, width, 3), 128, np.uint8)
    third, edges = height//3, np.arange(BITS + 1)*width//BITS
    for bit, (left, right) in enumerate(zip(edges, edges[1:])):
        bright = number >> bit & 1
        frame[:third, left:right] = 235 if bright else 20
        frame[third:2*third, left:right] = 20 if bright else 235
    frame[2*third:, :width//3] = (220, 20, 20)
    frame[2*third:, width - width//3:] = (20, 20, 220)
    return frame


def number(frame):
    "The number in a frame of any size; -1 where it cannot be told, or the frame does not stand upright."
    height, width = frame.shape[:2]
    third, edges, found = height/3, np.arange(BITS + 1)*width/BITS, 0
    grey = frame.mean(2) if frame.ndim == 3 else frame.astype(float)
    for bit, (left, right) in enumerate(zip(edges, edges[1:])):
        margin = (right - left)/3
        inside = slice(int(left + margin), max(int(right - margin), int(left + margin) + 1))
        high = grey[int(third*.2):int(third*.8) + 1, inside].mean()
        low = grey[int(third*1.2):int(third*1.8) + 1, inside].mean()
        if abs(high - low) < SURE: return -1
        found |= int(high > low) << bit
    if frame.ndim == 3 and np.ptp(frame.astype(int), axis=2).max() > 60: # a coloured picture
        left, right = (frame[int(height*.85), int(width*x)].astype(int) for x in (.1, .9))
        if left[0] <= left[2] or right[2] <= right[0]: return -1
    return found


def runs(numbers):
    "The same list, as (first, last) of each run of numbers that follow each other."
    found = []
    for n in numbers:
        if found and n == found[-1][1] + 1: found[-1][1] = n
        else: found.append([n, n])
    return found


# ---- the truth -------------------------------------------------------------------------------------------------------
def best_stream(container):
    "The stream that a player shows: FFmpeg's choice, pictures of a cover left out."
    real = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    best = container.streams.best('video')
    return best if best in real else real[0] if real else None


def turned(picture, frame):
    "The picture as the frame's display matrix says that it is to be shown."
    matrix = frame.side_data.get('DISPLAYMATRIX')
    if matrix is None: return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5] # x, y are shown at a*x + c*y, b*x + d*y
    if not a: picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


def sequential(path):
    "Yield (time or None, RGB picture) of all frames that decoding from the start shows; damage is passed over."
    try: container = av.open(str(path))
    except (av.FFmpegError, ValueError): return
    with container:
        stream = best_stream(container)
        if stream is None or stream.codec_context is None: return
        stream.codec_context.thread_count = 1 # what conceals damage depends on it
        for frame in _frames(container, stream):
            time = None if frame.pts is None else float(frame.pts*frame.time_base)
            yield time, turned(frame.to_ndarray(format='rgb24'), frame)


def _frames(container, stream):
    packets, more = container.demux(stream), True
    while more:
        try: packet = next(packets)
        except (StopIteration, av.FFmpegError): packet, more = None, False # None: what the decoder still holds
        try: yield from stream.codec_context.decode(packet)
        except av.FFmpegError: continue


# ---- files -----------------------------------------------------------------------------------------------------------
ENCODERS = { # name -> arguments
    'h264': ('-c:v', 'libx264', '-preset', 'veryfast'),
    'h264 open': ('-c:v', 'libx264', '-preset', 'veryfast', '-x264-params', 'open-gop=1'),
    'h264 intra-refresh': ('-c:v', 'libx264', '-preset', 'veryfast', '-x264-params', 'intra-refresh=1'),
    'h264 interlaced': ('-c:v', 'libx264', '-preset', 'veryfast', '-flags', '+ilme+ildct'),
    'hevc': ('-c:v', 'libx265', '-preset', 'ultrafast', '-x265-params', 'open-gop=0:log-level=error:pools=1'),
    'hevc open': ('-c:v', 'libx265', '-preset', 'ultrafast', '-x265-params', 'log-level=error:pools=1'),
    'mpeg1': ('-c:v', 'mpeg1video', '-q:v', '3'),
    'mpeg2': ('-c:v', 'mpeg2video', '-q:v', '3'),
    'mpeg2 closed': ('-c:v', 'mpeg2video', '-q:v', '3', '-flags', '+cgop', '-sc_threshold', '1000000000'),
    'mpeg4': ('-c:v', 'mpeg4', '-q:v', '3'),
    'mpeg4 xvid': ('-c:v', 'mpeg4', '-q:v', '3', '-tag:v', 'XVID'), # libxvid itself writes broken B-frames
    'h263': ('-c:v', 'h263', '-q:v', '3', '-s', '176x144'),
    'flv1': ('-c:v', 'flv', '-q:v', '3'),
    'wmv2': ('-c:v', 'wmv2', '-q:v', '3'),
    'msmpeg4': ('-c:v', 'msmpeg4', '-q:v', '3'),
    'rv20': ('-c:v', 'rv20', '-q:v', '3'),
    'vp8': ('-c:v', 'libvpx', '-b:v', '1M', '-deadline', 'realtime', '-cpu-used', '8'),
    'vp8 hidden': ('-c:v', 'libvpx', '-b:v', '1M', '-deadline', 'good', '-cpu-used', '5', '-auto-alt-ref', '1',
                   '-lag-in-frames', '16'),
    'vp9': ('-c:v', 'libvpx-vp9', '-b:v', '1M', '-deadline', 'realtime', '-cpu-used', '8'),
    'vp9 hidden': ('-c:v', 'libvpx-vp9', '-b:v', '1M', '-deadline', 'good', '-cpu-used', '8', '-auto-alt-ref', '1',
                   '-lag-in-frames', '16'),
    'av1': ('-c:v', 'libsvtav1', '-preset', '12', '-crf', '30', '-svtav1-params', 'lp=1'),
    'av1 aom': ('-c:v', 'libaom-av1', '-cpu-used', '8', '-usage', 'realtime', '-crf', '30', '-threads', '1'),
    'theora': ('-c:v', 'libtheora', '-q:v', '8'),
    'mjpeg': ('-c:v', 'mjpeg', '-q:v', '3', '-pix_fmt', 'yuvj420p'),
    'prores': ('-c:v', 'prores_ks', '-profile:v', '0', '-pix_fmt', 'yuv422p10le'),
    'dnxhd': ('-c:v', 'dnxhd', '-profile:v', 'dnxhr_lb', '-pix_fmt', 'yuv422p'),
    'ffv1': ('-c:v', 'ffv1', '-g', '1'),
    'huffyuv': ('-c:v', 'huffyuv', '-pix_fmt', 'yuv422p'),
    'png': ('-c:v', 'png'),
    'dv': ('-c:v', 'dvvideo', '-s', '720x576', '-pix_fmt', 'yuv420p', '-aspect', '16:9'),
    'gif': ('-c:v', 'gif'),
    'apng': ('-c:v', 'apng'),
    'raw': ('-c:v', 'rawvideo'),
}
CONTAINERS = { # name -> (suffix, arguments)
    'mp4': ('mp4', ()), 'mov': ('mov', ()), 'mkv': ('mkv', ()), 'webm': ('webm', ()), 'avi': ('avi', ()),
    'hvc1': ('mp4', ('-tag:v', 'hvc1')),
    'fragments': ('mp4', ('-movflags', '+frag_keyframe+empty_moov+default_base_moof')),
    'cmaf': ('mp4', ('-movflags', '+frag_every_frame+empty_moov+delay_moov')),
    'ts': ('ts', ()), 'm2ts': ('m2ts', ('-f', 'mpegts', '-mpegts_m2ts_mode', '1')), 'mpg': ('mpg', ()),
    'vob': ('vob', ()), 'asf': ('asf', ()), 'wmv': ('wmv', ()), 'flv': ('flv', ()), 'mxf': ('mxf', ()),
    'ogv': ('ogv', ()), '3gp': ('3gp', ()), 'nut': ('nut', ()), 'rm': ('rm', ()), 'dv': ('dv', ()), 'gif': ('gif', ()),
    'apng': ('apng', ('-f', 'apng')), 'ivf': ('ivf', ()), 'raw h264': ('h264', ()), 'raw hevc': ('hevc', ()),
    'raw m2v': ('m2v', ()), 'raw m1v': ('m1v', ()), 'raw m4v': ('m4v', ('-f', 'm4v')), 'raw obu': ('obu', ()),
    'raw mjpeg': ('mjpeg', ()),
}
ISO = 'mp4 mov mkv fragments'
PAIRS = [(codec, container.replace('~', ' ')) for codecs, containers in {
    'h264,h264 open': ISO + ' cmaf ts m2ts flv avi mpg raw~h264 3gp nut mxf asf',
    'h264 intra-refresh': 'mp4 ts mkv raw~h264', 'h264 interlaced': 'mp4 ts m2ts',
    'hevc,hevc open': ISO + ' hvc1 cmaf ts m2ts raw~hevc flv',
    'mpeg1': 'mpg raw~m1v mkv', 'mpeg2,mpeg2 closed': 'mpg vob ts m2ts mkv mp4 mxf raw~m2v avi',
    'mpeg4': 'avi mp4 mov mkv raw~m4v ts', 'mpeg4 xvid': 'avi mkv mov', 'h263': '3gp avi mov', 'flv1': 'flv avi',
    'wmv2,msmpeg4': 'asf wmv avi', 'rv20': 'rm', 'vp8,vp8 hidden': 'webm mkv ivf',
    'vp9,vp9 hidden': 'webm mkv mp4 ivf fragments', 'av1,av1 aom': 'webm mkv mp4 ivf raw~obu', 'theora': 'ogv mkv',
    'mjpeg': 'avi mov mkv mp4 raw~mjpeg', 'prores': 'mov mkv mxf', 'dnxhd': 'mov mxf', 'ffv1': 'mkv avi nut',
    'huffyuv': 'avi mkv', 'png': 'mov mkv avi', 'dv': 'dv avi mov', 'gif': 'gif', 'apng': 'apng',
    'raw': 'avi mov nut'}.items() for codec in codecs.split(',') for container in containers.split()]


@dataclass(frozen=True)
class Recipe:
    "How a file is made."
    codec: str
    container: str
    frames: int = 60
    rate: str = '25'           # frames a second
    size: tuple[int, int] = (128, 72)
    pixels: str = ''           # FFmpeg's name of their format; the encoder's usual one when empty
    group: int = 12            # frames from one key frame to the next
    b_frames: int = 0
    uneven: bool = False       # some frames are left out
    late: float = 0.           # seconds before the first frame
    sound: float | None = None # when sound begins, seconds after the picture; None: there is none
    cut: tuple[float, float] | None = None # (from, length) as shares of the recording, trimmed without encoding
    angle: int = 0             # stored turned by it, with the note to turn it back
    mirrored: bool = False     # stored mirrored, with the note to mirror it back
    shape: str = ''            # of a pixel, such as 4/3

    @property
    def seconds(self) -> float: return self.frames/float(Fraction(self.rate))

    @property
    def kept(self) -> list[int]:
        "The numbers of the frames that are encoded."
        every = range(self.frames)
        return [i for i in every if i % 7 != 3 and not 20 <= i < 27] if self.uneven else list(every)

    def pictures(self):
        "Yield them, as they are to lie in the file."
        for i in range(self.frames):
            picture = draw(i, *(self.size[::-1] if self.angle in (90, 270) else self.size))
            if self.mirrored: picture = picture[:, ::-1]
            yield np.ascontiguousarray(np.rot90(picture, -self.angle//90))


class CannotEncode(Exception):
    "This FFmpeg makes no such file."


def make(recipe, folder):
    "Write the file; raises `CannotEncode` with FFmpeg's reason."
    suffix, how = CONTAINERS[recipe.container]
    first, last = folder/f'first.{suffix}', folder/f'numbered.{suffix}'
    _run(_encode(recipe) + [*how, first], b''.join(map(bytes, recipe.pictures())))
    if not (recipe.cut or recipe.angle or recipe.mirrored): return first.rename(last)
    turn = ['-display_rotation:v:0', recipe.angle] if recipe.angle else []
    if recipe.mirrored: turn += ['-display_hflip:v:0']
    begin, length = (share*recipe.seconds for share in recipe.cut or (0, 2))
    _run([*turn, *(['-ss', begin] if begin else []), '-i', first, '-t', length, '-c', 'copy', *how, last])
    first.unlink()
    return last


def _encode(recipe):
    "Arguments that encode pictures from the standard input, with sound where the recipe has some."
    size = f'{recipe.size[0]}x{recipe.size[1]}'
    command = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', size, '-r', recipe.rate, '-i', '-']
    if recipe.sound is not None:
        tone = f'sine=f=440:r=48000:d={max(recipe.seconds, 1):g}'
        command += ['-itsoffset', recipe.sound, '-f', 'lavfi', '-i', tone, '-map', '0:v', '-map', '1:a', '-ac', '2']
    kept = '+'.join(f'eq(n,{i})' for i in recipe.kept)
    filters = [f"select='{kept}'"] if recipe.uneven else []
    if recipe.shape: filters += [f'setsar={recipe.shape}']
    if filters: command += ['-vf', ','.join(filters)]
    command += ['-g', recipe.group, '-bf', recipe.b_frames, '-pix_fmt', recipe.pixels or 'yuv420p', '-threads', 1]
    command += [*ENCODERS[recipe.codec], '-fps_mode', 'passthrough']
    return command + (['-output_ts_offset', recipe.late] if recipe.late else [])


def _run(arguments, data=None):
    command = [ffmpeg(), '-v', 'error', '-y', *map(str, arguments)]
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode: raise CannotEncode((done.stderr.decode(errors='replace').strip() or '?').splitlines()[-1])


# ---- very many of them -----------------------------------------------------------------------------------------------
RATES = '1', '10', '24000/1001', '25', '30000/1001', '50', '60', '120', '1000'
OLD_RATES = '24000/1001', '25', '30000/1001', '50', '60000/1001' # all that MPEG-1, MPEG-2 and MXF know
RATE_ONLY = 'raw', 'dv', 'ivf', 'avi', 'gif', 'apng', 'rm' # containers without times of their own, or never cut so
TURNABLE = 'mp4', 'mov', 'hvc1', 'mkv' # containers that say how a picture is to be turned


STRIDE = 31 # through the pairs: a few dozen are of all families
assert gcd(STRIDE, len(PAIRS)) == 1


def any_recipe(seed):
    "One of very many, the same for the same seed; pairs of codec and container take turns."
    codec, container = PAIRS[seed*STRIDE % len(PAIRS)]
    family, choice = codec.split()[0], random.Random(f'recipe {seed}').choice
    has_times, turns = not container.startswith(RATE_ONLY), container in TURNABLE
    rates = OLD_RATES if family in ('mpeg1', 'mpeg2') or container == 'mxf' else RATES
    rate = '25' if family in ('dv', 'h263') else choice(['25', choice(rates)])
    pixels = choice(PIXELS.get(family, ['']))
    if container in ('3gp', 'mxf') or codec == 'h264 interlaced': pixels = ''
    return Recipe(
        codec, container, choice([1, 2, 5, 30, 60, 60, 60, 100]), rate,
        _size(family, container, pixels, choice), pixels, choice([1, 5, 12, 12, 25, 250]),
        choice(B_FRAMES.get(family, [0])),
        has_times and family not in ('mpeg1', 'mpeg2') and container != 'mxf' and choice([False]*4 + [True]),
        choice([0, 0, 0, .5, 3.5]) if has_times else 0,
        choice([None, None, None, -.5, 0, .7]) if container in WITH_SOUND else None,
        choice([None, None, (0, .5), (.2, .3), (.47, 2)]) if has_times else None,
        choice([0, 0, 90, 180, 270]) if turns else 0, turns and choice([False]*9 + [True]),
        choice(['']*9 + ['4/3']) if container in ('mp4', 'mkv', 'mov', 'ts') else '')


def _size(family, container, pixels, choice):
    "Mostly small and even, odd where a codec can."
    if family == 'dnxhd': return 256, 144
    odd = family in ('mpeg4', 'vp8', 'vp9', 'av1', 'mjpeg', 'ffv1', 'png', 'mpeg2', 'theora') or pixels == 'yuv444p'
    return choice([(128, 72), (150, 90), (131, 75) if odd and container != 'mxf' else (128, 72)])


KINDS = ['', '', '', 'yuv444p', 'yuv420p10le', 'gray'] # of pixels
PIXELS = {'h264': KINDS, 'hevc': KINDS, 'ffv1': KINDS, 'vp9': ['', '', 'yuv444p']}
B_FRAMES = {'h264': [0, 1, 2, 3, 5, 16], 'hevc': [0, 1, 2, 4], 'mpeg1': [0, 1, 2], 'mpeg2': [0, 1, 2, 3],
            'mpeg4': [0, 1, 2]}
WITH_SOUND = ('mp4', 'mov', 'mkv', 'fragments', 'ts', 'm2ts', 'mpg', 'vob', 'asf', 'wmv', 'avi', '3gp', 'nut', 'webm',
              'flv')
