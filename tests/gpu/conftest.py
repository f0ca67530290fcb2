"""The pretended GPU, for whichever test of this folder asks for it."""

import os

import pytest

from tests.gpu.pretended.build import CannotBuild, build


@pytest.fixture(scope="session")
def pretended(tmp_path_factory):
    """The variables with which a process finds one pretended H100."""
    try:
        return {**os.environ, **build(tmp_path_factory.mktemp("pretended"))}
    except CannotBuild as error:
        pytest.skip(str(error))
