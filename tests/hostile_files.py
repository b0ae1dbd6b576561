"""Files that nobody should send, made with FFmpeg and by changing bytes; each with what must become of it.

`FILES[name](folder)` writes one and returns its path. `KINDS` are the ones that are no video at all, which a server
tells by their content; `REFUSED` are videos that cannot be used. The rest is answered, perhaps with a warning."""
import functools, io, random, subprocess, zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vlmtemporal.video import ffmpeg

FILES: dict = {}
KINDS: set[str] = set()   # no video at all
REFUSED: set[str] = set() # a video that cannot be used
EITHER: set[str] = set()  # what becomes of it is FFmpeg's business, as long as it is said in a sentence


def maker(name: str, *groups: set):
    "A function that makes a file of that name from the folder that it may work in, and returns its bytes."
    def note(make):
        def write(folder: Path) -> Path:
            path = folder/name
            path.write_bytes(make(folder))
            return path
        FILES[name] = write
        for group in groups: group.add(name)
        return make
    return note


def run(folder: Path, out: str, *args: str) -> bytes:
    "What FFmpeg writes."
    subprocess.run([ffmpeg(), '-v', 'quiet', '-y', *args, '-threads', '1', str(folder/out)], check=True,
                   stdin=subprocess.DEVNULL)
    data = (folder/out).read_bytes()
    (folder/out).unlink()
    return data


X264 = ('-c:v', 'libx264', '-preset', 'ultrafast', '-g', '25', '-pix_fmt', 'yuv420p')

@functools.lru_cache(64)
def encoded(out: str = 'a.mp4', size='160x120', rate='25', seconds='6', how: tuple[str, ...] = X264, kind='testsrc2',
            before: tuple[str, ...] = ()) -> bytes:
    "A small video."
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), out, '-f', 'lavfi', '-i', f'{kind}=s={size}:r={rate}', '-t', seconds, *before, *how)


def put(data: bytes, box: bytes, at: int, value: bytes) -> bytes:
    "Other bytes, `at` bytes behind the name of the first such box."
    out, start = bytearray(data), data.index(box) + at
    out[start:start + len(value)] = value
    return bytes(out)


# what is no video

TEXTS = {'notes.mp4': 'the worker picks an item\n'*40, 'clip.srt': '1\n00:00:00,000 --> 00:00:05,000\npicks\n\n',
         'list.m3u8': '#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n',
         'list.mp4': '#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n',
         'concat.mp4': "ffconcat version 1.0\nfile '/etc/passwd'\n", 'page.mp4': '<html><body>a page</body></html>',
         'session.sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n',
         'dash.mpd': '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
         'image.svg': '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
         'one.txt': 'x', 'subtitle.vtt': 'WEBVTT\n\n00:00.000 --> 00:05.000\npicks\n'}
for _name, _text in TEXTS.items(): maker(_name, KINDS)(lambda folder, text=_text: text.encode())


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((120, 160, 3), 128, np.uint8)).save(out, kind)
    return out.getvalue()

for _kind in ('png', 'jpeg', 'bmp', 'webp', 'tiff'): maker(f'picture_{_kind}.mp4', KINDS)(
    lambda folder, kind=_kind: picture(kind))


@maker('archive.mp4', KINDS)
def archive(folder):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as file: file.writestr('a.mp4', encoded())
    return out.getvalue()

@maker('bomb.mp4', KINDS)
def bomb(folder):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as file: file.writestr('a.mp4', bytes(10**8))
    return out.getvalue()

maker('program.mp4', KINDS)(lambda folder: b'\x7fELF\x02\x01\x01' + bytes(4000))
maker('paper.mp4', KINDS)(lambda folder: b'%PDF-1.7\n' + b'1 0 obj\n<<>>\nendobj\n'*50)
maker('noise.mp4', KINDS)(lambda folder: b'\xf0' + random.Random(1).randbytes(20_000))
maker('zeros.mp4', KINDS)(lambda folder: bytes(20_000))
maker('empty.mp4', REFUSED)(lambda folder: b'')
maker('sound.wav', KINDS)(lambda folder: run(folder, 'x.wav', '-f', 'lavfi', '-i', 'sine', '-t', '2'))


# videos without pictures

maker('sound.mp4', REFUSED)(lambda folder: run(folder, 'x.mp4', '-f', 'lavfi', '-i', 'sine', '-t', '2', '-c:a', 'aac'))
maker('sound.mkv', REFUSED)(lambda folder: run(folder, 'x.mkv', '-f', 'lavfi', '-i', 'sine', '-t', '2', '-c:a', 'flac'))
maker('head_only.mp4', REFUSED)(lambda folder: encoded()[:32])
maker('no_frames.avi', REFUSED)(lambda folder: encoded('a.avi', how=('-c:v', 'mjpeg'))[:5500])
maker('no_frames.mp4', REFUSED)(lambda folder: put(put(encoded(), b'stsz', 12, bytes(4)), b'stts', 8, bytes(4)))
maker('only_an_index.mkv', REFUSED)(lambda folder: encoded('a.mkv')[:700])


# counts and sizes that cannot be

MANY, MOST = (0x7fffffff).to_bytes(4, 'big'), b'\xff'*4
for _box, _at in (('stts', 8), ('stsc', 8), ('stsz', 12), ('stco', 8), ('elst', 8), ('stss', 8)):
    maker(f'many_{_box}.mp4', EITHER)(lambda folder, box=_box, at=_at: put(encoded(), box.encode(), at, MANY))
for _box in ('moov', 'trak', 'mdat', 'stsd', 'avcC'):
    maker(f'large_{_box}.mp4', EITHER)(lambda folder, box=_box: put(encoded(), box.encode(), -4, MOST))
maker('long_sample.mp4', EITHER)(lambda folder: put(encoded(), b'stsz', 16, MANY))
maker('no_clock.mp4', EITHER)(lambda folder: put(encoded(), b'mdhd', 16, bytes(4)))
maker('fast_clock.mp4', EITHER)(lambda folder: put(encoded(), b'mdhd', 16, MOST))
maker('slow_frames.mp4', EITHER)(lambda folder: put(encoded(), b'stts', 16, MANY))
maker('far_edit.mp4', EITHER)(lambda folder: put(encoded(), b'elst', 16, MANY))
maker('other_file.mp4', EITHER)(lambda folder: put(encoded(), b'url ', 4, bytes(4)))
maker('deep.mp4', REFUSED)(lambda folder: encoded()[:32] + b''.join(
    (8*n).to_bytes(4, 'big') + b'moov' for n in range(20_000, 0, -1)))
maker('many_frames.avi', EITHER)(lambda folder: put(encoded('a.avi', how=('-c:v', 'mpeg4')), b'avih', 24, MANY[::-1]))
maker('endless.mkv', EITHER)(lambda folder: put(encoded('a.mkv'), b'\x18\x53\x80\x67', 4, b'\x01' + b'\xff'*7))
maker('large_block.mkv', EITHER)(lambda folder: put(encoded('a.mkv'), b'\x1f\x43\xb6\x75', 4, b'\x08\xff\xff\xff'))

def large_picture(data: bytes, mark: bytes, at: int, side: int) -> bytes:
    "Another height and width in every picture's header."
    out, start = bytearray(data), data.find(mark)
    while start >= 0:
        out[start + at:start + at + 4] = side.to_bytes(2, 'big')*2
        start = data.find(mark, start + 4)
    return bytes(out)

HEAD, MJPEG = b'\xff\xc0\x00\x11\x08', ('-c:v', 'mjpeg')
maker('huge_header.avi', REFUSED)(lambda folder: large_picture(encoded('a.avi', how=MJPEG), HEAD, 5, 16384))
maker('huge_header.mkv', REFUSED)(lambda folder: large_picture(encoded('a.mkv', how=MJPEG), HEAD, 5, 65500))
maker('huge_png.mov', REFUSED)(lambda folder: encoded('a.mov', how=('-c:v', 'png')).replace(
    b'IHDR\x00\x00\x00\xa0\x00\x00\x00\x78', b'IHDR\x00\x00\x40\x00\x00\x00\x40\x00'))


# cut short, and with bits turned over

FAST = (*X264, '-movflags', 'faststart')
for _tenth in range(1, 10):
    maker(f'cut_{_tenth}.mp4', *([REFUSED] if _tenth == 1 else [EITHER]))(
        lambda folder, tenth=_tenth: encoded(how=FAST)[:len(encoded(how=FAST))*tenth//10 if tenth > 1 else 600])
    maker(f'cut_{_tenth}_end.mp4', REFUSED)(lambda folder, tenth=_tenth: encoded()[:len(encoded())*tenth//10])

def flipped(data: bytes, seed: int, bits: int = 100, first: int = 0) -> bytes:
    out, draw = bytearray(data), random.Random(seed)
    for _ in range(bits): out[draw.randrange(first, len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)

for _seed, _out in enumerate(('a.mp4', 'a.mkv', 'a.ts', 'a.avi', 'a.flv')):
    _how = ('-c:v', 'mpeg4') if _out == 'a.avi' else X264
    maker(f'bits_{_seed}.{_out[2:]}', EITHER)(
        lambda folder, out=_out, how=_how, seed=_seed: flipped(encoded(out, how=how), seed))


# odd, but videos

RAW = ('-c:v', 'rawvideo', '-pix_fmt', 'bgr24')
maker('1x1.avi')(lambda folder: encoded('a.avi', size='1x1', kind='color', how=RAW))
maker('1x1.mkv')(lambda folder: encoded('a.mkv', size='1x1', kind='color', how=('-c:v', 'ffv1')))
maker('wide.mkv')(lambda folder: encoded('a.mkv', size='8000x16', kind='color', how=MJPEG, rate='5'))
maker('tall.mkv')(lambda folder: encoded('a.mkv', size='16x8000', kind='color', how=MJPEG, rate='5'))
maker('1000_fps.mp4')(lambda folder: encoded(rate='1000'))
maker('slow.mp4', REFUSED)(lambda folder: encoded(rate='1/2', seconds='12', how=(*X264, '-bf', '0')))
maker('one_frame.mp4')(lambda folder: encoded(how=(*X264, '-frames:v', '1')))
maker('one_frame.gif')(lambda folder: encoded('a.gif', how=('-frames:v', '1')))
maker('moving.gif')(lambda folder: encoded('a.gif', rate='10', how=()))
maker('deep_colour.mkv')(lambda folder: encoded('a.mkv', how=('-c:v', 'ffv1', '-pix_fmt', 'yuv444p16le'), rate='5'))
maker('alpha.mov')(lambda folder: encoded('a.mov', how=('-c:v', 'png', '-pix_fmt', 'rgba64be'), rate='5'))
maker('odd.mkv')(lambda folder: encoded('a.mkv', size='161x121', how=('-c:v', 'mjpeg', '-pix_fmt', 'yuvj444p')))
maker('sizes.ts')(lambda folder: encoded('a.ts', seconds='3') + encoded('a.ts', '320x240', seconds='3'))
maker('sizes_down.ts')(lambda folder: encoded('a.ts', '1280x720', seconds='3') + encoded('a.ts', '64x64', seconds='3'))
maker('sizes.h264')(lambda folder: encoded('a.h264', seconds='3') + encoded('a.h264', '64x48', seconds='3'))
maker('codecs.ts', EITHER)(
    lambda folder: encoded('a.ts', seconds='3') + encoded('a.ts', seconds='3', how=('-c:v', 'mpeg2video')))
maker('twice.mp4')(lambda folder: encoded()*2)
maker('tail.mp4')(lambda folder: encoded() + random.Random(2).randbytes(50_000))
maker('text_tail.mp4')(lambda folder: encoded() + TEXTS['list.m3u8'].encode())
maker('plain.mp4')(lambda folder: encoded())
