"Packaging: everything it says comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lines = lambda key: [line for line in cfg[key].splitlines() if line.strip()]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name']]),
    package_dir={'': '.'}, # an editable install is a path then, see tests/test_wheel.py
    package_data={cfg['lib_name']: ['tiny_model/**', 'taxonomies/*.yaml', 'pages/*', 'accelerate/*.yaml']},
    python_requires=f">={cfg['min_python']}", install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements'), 'labels': lines('labels_requirements'),
                    'kaggle': lines('kaggle_requirements'), 'serve': lines('serve_requirements'),
                    'ray': lines('ray_requirements'), 'remote': lines('remote_requirements'),
                    'openai': lines('openai_requirements'), 'docs': lines('docs_requirements'),
                    'smolvlm': lines('smolvlm_requirements')},
    entry_points={'console_scripts': lines('console_scripts')},
)
