"""Two claims to one name: both are named, neither wins."""

from __future__ import annotations

import pytest
from plugin_host.plugin_sources import WORKING, with_hook

from modelscope_app.api import BadInput
from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]


def test_two_plugins_of_one_name_are_both_refused_and_neither_imported(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("same", "raise RuntimeError('imported')", distribution="first-lens")
    temporary_plugins.write("same", "raise RuntimeError('imported')", distribution="second-lens")
    temporary_plugins.write("good", WORKING)
    host = temporary_plugins.host()
    assert host.names() == ("good", "same")
    with pytest.raises(BadInput, match="first-lens and second-lens both register a plugin called 'same'; uninstall one"):
        host.analysis("same.stats")
    good, same = host.report().plugins
    assert (good.state, same.state) == ("ok", "broken")
    assert same.distribution == "first-lens and second-lens"
    assert same.import_ms is None
    assert [bound.id for bound in host.analyses()] == ["good.stats", "good.diff"]


def test_two_entry_points_of_one_name_in_one_distribution_are_refused_too(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("same", WORKING)
    temporary_plugins.write("same", WORKING)
    assert "both register a plugin called 'same'" in temporary_plugins.host().load("same").problems[0]


def test_two_analyses_of_one_id_are_both_left_out(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("one", with_hook("return [analysis('stats'), analysis('diff'), analysis('stats', version=2)]"))
    host = temporary_plugins.host()
    assert [bound.id for bound in host.analyses()] == ["one.diff"]
    assert host.report().plugins[0].problems == ("modelscope_analyses returns 2 values called 'stats'; none of them counts",)
    with pytest.raises(BadInput, match=r"one\.stats: modelscope_analyses returns 2 values called 'stats'"):
        host.analysis("one.stats")


def test_two_plugins_that_build_one_model_type_are_both_named(temporary_plugins: TemporaryPlugins) -> None:
    hook = "modelscope_architectures"
    temporary_plugins.write("elm", with_hook("return [Architecture('tree', f'{__name__}:run')]", hook))
    temporary_plugins.write(
        "oak", with_hook("return [Architecture('tree', f'{__name__}:run'), Architecture('bush', f'{__name__}:run')]", hook)
    )
    host = temporary_plugins.host()
    with pytest.raises(BadInput, match="the plugins 'elm' and 'oak' both claim checkpoints of model_type 'tree'"):
        host.architecture("tree")
    bush = host.architecture("bush")
    assert bush is not None and bush.plugin == "oak"
    elm, oak = host.report().plugins
    assert elm.problems == ("model_type 'tree' is claimed by the plugin 'oak' too; neither counts until one is disabled",)
    assert oak.problems == ("model_type 'tree' is claimed by the plugin 'elm' too; neither counts until one is disabled",)


def test_two_plugins_that_read_one_suffix_are_both_named_and_neither_reads(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("elm", with_hook("return [Reader('.pipes', f'{__name__}:run')]", "modelscope_readers"))
    temporary_plugins.write("oak", with_hook("return [Reader('.PIPES', f'{__name__}:run')]", "modelscope_readers"))
    host = temporary_plugins.host()
    assert host.readers() == ()
    with pytest.raises(
        BadInput, match=r"the plugins 'elm' and 'oak' both claim \.pipes files; disable one with MSCOPE_DISABLE_PLUGINS=oak"
    ):
        host.reader(".pipes")
    assert [plugin.state for plugin in host.report().plugins] == ["partly broken", "partly broken"]
    (reader,) = temporary_plugins.host(disabled=["oak"]).readers()
    assert reader.suffix == ".pipes"


def test_panels_of_two_plugins_may_have_one_name(temporary_plugins: TemporaryPlugins) -> None:
    for name in ("elm", "oak"):
        temporary_plugins.write(name, with_hook("return [Panel('map', 'Map', f'{__name__}:run')]", "modelscope_panels"))
    host = temporary_plugins.host()
    assert [panel.plugin for panel in host.panels()] == ["elm", "oak"]
    assert host.report().is_healthy
