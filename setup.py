"The package, as settings.ini describes it: everything that nbdev also needs to know is written there, once."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
licences = dict(apache2='Apache-2.0')
lib, repo, site = cfg['lib_name'], cfg['git_url'], cfg['doc_host'] + cfg['doc_baseurl'] + '/'

setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], license=licences[cfg['license']],
    url=repo, project_urls={'Documentation': site, 'Source': repo, 'Issues': f'{repo}/issues'},
    classifiers=[f'Development Status :: {statuses[int(cfg["status"]) - 1]}', f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}', 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: 3.{v}' for v in range(int(cfg['min_python'].split('.')[1]), 14)),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'export': cfg['export_requirements'].split()},
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['mnist/*.gz', 'weights/*.safetensors', 'weights/*.json']},     # no download: the data set and the trained models travel inside
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={cfg["lib_path"]}._modidx:d']},
    zip_safe=False)
