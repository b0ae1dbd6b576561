"""A visitor's tour of the page, as pictures in nbs/04_serve.ipynb: needs playwright and Chromium.

python tools/tour.py [FOLDER]: take them anew, and leave them in FOLDER, too, to be looked at."""
import base64, json, socket, subprocess, sys, tempfile, time
from pathlib import Path
from shutil import which

from playwright.sync_api import Page, sync_playwright

NOTEBOOK = Path(__file__).parent.parent/'nbs'/'04_serve.ipynb'
HEAD = '## A visitor' # the cell of the tour begins with it
WAIT = 120_000 # milliseconds: the machine may be busy


def example(page: Page, which_one: int = 0):
    page.locator('.vt-examples button').nth(which_one).click()
    page.wait_for_function("document.querySelector('#vt-video video')?.readyState > 1", timeout=WAIT)
    page.wait_for_timeout(800)


def tab(page: Page, name: str):
    page.get_by_role('tab', name=name).click()
    page.wait_for_timeout(300)


def visit(page: Page, show):
    "Everything that a visitor may see, in the order in which it is seen."
    page.wait_for_selector('.vt-examples button', timeout=WAIT)
    page.wait_for_selector('#vt-ask', timeout=WAIT)
    show('empty')
    example(page)
    show('example')
    page.click('#vt-ask')
    page.wait_for_selector('#vt-clip .vt-now', timeout=WAIT)
    show('running', 0)
    page.wait_for_selector('#vt-clip .vt-what', timeout=WAIT)
    show('done')
    example(page, 2)
    tab(page, 'The whole video')
    page.click('#vt-read')
    page.wait_for_selector('#vt-whole .vt-table', timeout=WAIT)
    show('reading')
    page.wait_for_selector('#vt-whole .vt-files', timeout=WAIT)
    show('whole')
    tab(page, 'Live')
    page.click('#vt-follow')
    page.wait_for_selector('#vt-now .vt-bars', timeout=WAIT)
    page.wait_for_timeout(6000)
    show('live')
    page.click('#vt-end')
    page.wait_for_selector('#vt-now :is(.vt-calm, .vt-is-ended)', timeout=WAIT)
    broken = Path(tempfile.mkdtemp())/'holiday.mp4'
    broken.write_bytes(b'this is a letter and no video')
    page.locator('#vt-video button[aria-label=Clear]').click()
    page.set_input_files('#vt-video input[type=file]', str(broken))
    page.wait_for_timeout(1500)
    tab(page, 'A clip')
    page.click('#vt-ask')
    page.wait_for_selector('#vt-clip .vt-problem', timeout=WAIT)
    show('error')


LOOKS = [(1280, 'light'), (390, 'light'), (1280, 'dark'), (390, 'dark'), (1920, 'dark')]
KEPT = ['empty 1280 light', 'example 390 light', 'running 390 light', 'done 1280 light', 'done 390 dark',
        'reading 1280 light', 'whole 1280 light', 'whole 390 light', 'live 1280 light', 'live 390 dark',
        'error 1280 light', 'error 390 dark'] # in the notebook


def tour(url: str) -> dict[str, bytes]:
    "A JPEG of each state at each width, light and dark."
    found = {}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=which('chromium') or which('google-chrome'), args=['--no-sandbox'])
        for width, scheme in LOOKS:
            page = browser.new_page(viewport=dict(width=width, height=844), color_scheme=scheme)
            page.set_default_timeout(WAIT)
            page.goto(url)
            def show(name, milliseconds=400, page=page, look=f'{width} {scheme}'):
                page.wait_for_timeout(milliseconds)
                found[f'{name} {look}'] = page.screenshot(type='jpeg', quality=60, full_page=True)
                print(name, look, file=sys.stderr)
                wide = page.evaluate('document.documentElement.scrollWidth - innerWidth')
                assert wide <= 0, f'{name} {look} is {wide} pixels too wide'
            visit(page, show)
            page.close()
    return found


def keep(pictures: dict[str, bytes]):
    "Write them into the notebook, as attachments of the cell of the tour."
    notebook = json.loads(NOTEBOOK.read_text())
    cell = next(c for c in notebook['cells'] if ''.join(c['source']).startswith(HEAD))
    text = ''.join(cell['source']).split('\n\n![')[0]
    names = {key: f'{key.replace(" ", "-")}.jpg' for key in KEPT}
    text += ''.join(f'\n\n![{key}](attachment:{name})' for key, name in names.items())
    cell['source'] = text.splitlines(keepends=True)
    data = {name: base64.b64encode(pictures[key]).decode() for key, name in names.items()}
    cell['attachments'] = {name: {'image/jpeg': text} for name, text in data.items()}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n')


def main(folder: str | None = None):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [str(Path(sys.executable).parent/'vlmtemporal'), 'serve', '--port', str(port), '--log', 'none']
    server = subprocess.Popen(command)
    try:
        for _ in range(1200): # the machine may be busy
            with socket.socket() as s:
                if not s.connect_ex(('127.0.0.1', port)): break
            time.sleep(.5)
        pictures = tour(f'http://127.0.0.1:{port}')
    finally:
        server.terminate()
        server.wait()
    keep(pictures)
    for key, data in pictures.items() if folder else (): (Path(folder)/f'{key.replace(" ", "-")}.jpg').write_bytes(data)


if __name__ == '__main__': main(*sys.argv[1:])
