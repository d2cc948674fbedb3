"""`import modeling` is quick, and whatever it names is there when it is used."""

import ast
import gc
import json
import subprocess
import sys

import pytest

import modeling
from modeling.quick_imports import quick_imports
from tests.conftest import REPOSITORY


def in_a_new_process(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


def test_importing_the_package_imports_no_library():
    """What takes time is imported with the first name: torch alone takes seconds, transformers as long again."""
    program = "import sys, modeling; print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    assert in_a_new_process(program) == "[]"


def test_the_page_is_built_without_the_models_libraries():
    """torch and transformers take longer to import than gradio: the page is up first, they come in the background."""
    program = "import sys, app; app.Page(); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert in_a_new_process(program) == "[]"


def test_no_garbage_is_collected_while_libraries_are_imported():
    with pytest.raises(ZeroDivisionError), quick_imports():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()  # who does without goes on doing without
    finally:
        gc.enable()


def test_type_checkers_are_told_what_is_there():
    tree = ast.parse((REPOSITORY / "modeling" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == modeling._MODULE_OF
    assert set(modeling.__all__) == set(told) <= set(dir(modeling))


@pytest.mark.parametrize("name", modeling.__all__)
def test_every_name_is_found(name):
    value = getattr(modeling, name)
    assert value.__module__ == f"modeling.{modeling._MODULE_OF[name]}"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="StoryPipelines"):
        _ = modeling.StoryPipelines
    with pytest.raises(ImportError):
        from modeling import nothing_of_the_kind  # noqa: F401


@pytest.mark.parametrize(
    "first",
    [
        "from modeling import StoryPipeline",
        "import modeling; modeling.register_auto_classes()",
        "import training.make_style",
    ],
)
def test_auto_classes_know_the_models(first):
    program = f"""
{first}
import json
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
names = {{}}
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM):
    for config, model in auto._model_mapping._extra_content.items():
        assert type(AutoConfig.for_model(config.model_type)) is config
        names[config.model_type] = model.__name__
assert any(config.model_type == "pictale_captioner" for config in IMAGE_PROCESSOR_MAPPING._extra_content)
print(json.dumps(names))
"""
    known = json.loads(in_a_new_process(program))
    assert {"pictale_captioner", "pictale_skip_thoughts", "pictale_story_decoder"} < set(known)
    assert all(name in modeling.__all__ for name in known.values())
