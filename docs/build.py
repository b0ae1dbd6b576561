"Build the site into `_docs`, and look for dead links: `make docs` says it. Every warning is an error."
import shutil, subprocess, sys, time

from links import problems
from stage import ROOT, stage


def main():
    out, begun = ROOT/'_docs', time.monotonic()
    source, doctrees, html = (out/name for name in ('source', 'doctrees', 'html'))
    pages = stage(source)
    options = ['-W', '--keep-going', '-q', '-j', '2', '-c', ROOT/'docs', '-d', doctrees]
    command = [sys.executable, '-m', 'sphinx', '-b', 'html', *map(str, [*options, source, html])]
    if code := subprocess.run(command).returncode: sys.exit(code)
    if found := problems(html): sys.exit('\n'.join([*found, f'{len(found)} links lead nowhere or off this machine']))
    print(f'{len(pages)} pages in {time.monotonic() - begun:.0f} s, no dead link: {html/"index.html"}')


if __name__ == '__main__':
    if '--clean' in sys.argv: shutil.rmtree(ROOT/'_docs', ignore_errors=True)
    main()
