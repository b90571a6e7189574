"""Everything that `settings.ini` says, told to setuptools; each `<extra>_requirements` there becomes an extra."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

suffix = "_requirements"
extras = {key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)}
not_in_all = {"dev", "docs", "bench", "examples", "ray"}
extras["all"] = sorted({r for name, wanted in extras.items() if name not in not_in_all for r in wanted})

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=settings["author"],
    url=settings["git_url"],
    keywords=settings["keywords"].split(),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    packages=find_packages(include=["cjm_worker_ext*"]),
    package_data={"cjm_worker_ext": ["py.typed", "**/assets/*"]},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "pytest11": settings["pytest11"].split(),
        "nbdev": [f"{settings['lib_module']}={settings['lib_module']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Framework :: AsyncIO",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
