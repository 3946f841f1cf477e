import itertools
from collections.abc import Iterator

import pytest

from tests.serving.postgres import Postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def database(postgres: Postgres) -> str:
    """Return the address of a database of one test's own."""
    return postgres.make(f"test{next(_numbers)}")
