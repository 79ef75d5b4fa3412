"""srup.transport.mosquitto: what stands in Mosquitto's files. A real one reads them in test_keyex_broker.py."""

import json

import pytest

from srup.transport import access_list, broker_configuration, filter_list


def test_the_access_list_names_servers_and_patterns():
    assert access_list([0x5E], [0xD1]) == (
        "pattern readwrite SRUP/%u\npattern write SRUP/servers/+/%u\n"
        "\nuser 5e\ntopic readwrite SRUP/+\ntopic read SRUP/servers/5e/+\n"
        "\nuser d1\ntopic deny SRUP/#\n"
    )
    assert "readwrite SRUP/+" not in access_list([0x5E], [0x5E])
    assert access_list([0x5E], devices=False) == "\nuser 5e\ntopic readwrite SRUP/+\ntopic read SRUP/servers/5e/+\n"


@pytest.mark.parametrize(
    "options",
    [
        *({"port": 0}, {"port": 65536}, {"address": "a\nb"}, {"user": "a b"}, {"address": "1 2"}, {"data": "a\n"}),
        *({"workers_port": 0}, {"workers_port": 8883}, {"memory": 1}, {"memory": 1 << 30}, {"plugin": "a\nb"}),
    ],
)
def test_what_cannot_stand_in_the_configuration_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"port|memory|cannot stand"):
        broker_configuration(tmp_path, **options)


def test_the_folder_may_be_text(tmp_path):
    assert broker_configuration(str(tmp_path)) == broker_configuration(tmp_path)


def test_the_list_of_filters_decides_about_filters_alone_and_begins_with_the_last_name():
    content = json.loads(filter_list([0x9, 0xD1, 0x10]))
    assert [each["username"] for each in content["clients"]] == ["d1", "9", "10"]
    assert not any(content["defaultACLAccess"].values())
    kinds = {acl["acltype"] for role in content["roles"] for acl in role["acls"]}
    assert kinds == {"subscribeLiteral", "subscribePattern"}


def test_the_plugin_goes_with_one_listener(tmp_path):
    """Mosquitto 2.0.11 crashes at its end when two have it."""
    text = broker_configuration(tmp_path, workers_port=8884, plugin=tmp_path / "plugin.so")
    assert text.count(f"plugin {tmp_path}/plugin.so\n") == text.count("plugin_opt_config_file") == 1
    assert text.index("\nlistener 8883\n") < text.index("\nplugin ") < text.index("\nlistener 8884\n")
    assert "plugin " not in broker_configuration(tmp_path)
