"""Precedence, secrets and errors of the configuration."""

import base64
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from orbital_relay import config
from orbital_relay.config import ConfigError, Limits, Settings, TokenKey

SECRET = "canary-hunter2"
URL = f"postgresql://orbital:{SECRET}@db.example:5433/orbital?sslmode=require"
KEY = "a:" + base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")
OTHER_KEY = "b:" + base64.urlsafe_b64encode(bytes(range(1, 33))).decode()


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems(
    environ: dict[str, str] | None = None, file: Path | None = None, flags: dict[str, object] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(flags, environ or {}, file)
    lines = str(caught.value).splitlines()
    assert lines == list(caught.value.problems)
    return lines


def sources(settings: Settings) -> dict[str, str]:
    return {row.key: row.source for row in config.describe(settings)}


def shown(settings: Settings) -> dict[str, str]:
    return {row.key: row.shown for row in config.describe(settings)}


def test_defaults_need_nothing() -> None:
    settings = config.load(environ={})
    assert settings == Settings()
    assert (settings.listen_host, settings.listen_port, settings.operators_port) == ("127.0.0.1", 8765, 9765)
    assert (settings.pool_min, settings.pool_max, settings.pool_idle_s, settings.pool_connect_timeout_s) == (
        2,
        10,
        30,
        2,
    )
    assert set(sources(settings).values()) == {"default"}


def test_defaults_pass_their_own_checks() -> None:
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    assert Settings.model_validate(defaults) == Settings()


def test_each_source_gives_way_to_the_one_above() -> None:
    file = write(Path("my.toml"), "lanes = 3\nmax_batch = 3\nlane_queue = 3")
    environ = {"ORBITAL_MAX_BATCH": "4", "ORBITAL_LANE_QUEUE": "4"}
    settings = config.load({"lane_queue": 5, "listen_port": None}, environ, file)
    assert (settings.lanes, settings.max_batch, settings.lane_queue, settings.listen_port) == (3, 4, 5, 8765)
    where = sources(settings)
    assert where["lanes"] == "my.toml"
    assert where["max_batch"] == "environment ORBITAL_MAX_BATCH"
    assert where["lane_queue"] == "command line"
    assert where["listen_port"] == "default"


def test_which_file_is_read() -> None:
    write(Path("orbital.toml"), "lanes = 3")
    assert config.load(environ={}).lanes == 3
    other = write(Path("other.toml"), "lanes = 4")
    assert config.load(environ={"ORBITAL_CONFIG": "other.toml"}).lanes == 4
    third = write(Path("third.toml"), "lanes = 5")
    assert config.load(environ={"ORBITAL_CONFIG": str(other)}, file=third).lanes == 5


def test_database_url_is_an_alias_that_gives_way() -> None:
    keys = {"ORBITAL_TOKEN_KEYS": KEY}
    assert config.load(environ={"DATABASE_URL": URL} | keys).database_url == URL
    both = config.load(environ={"DATABASE_URL": "postgresql:///other", "ORBITAL_DATABASE_URL": URL} | keys)
    assert both.database_url == URL
    write(Path("url"), URL + "\n")
    by_file = config.load(environ={"DATABASE_URL": "postgresql:///other", "ORBITAL_DATABASE_URL_FILE": "url"} | keys)
    assert by_file.database_url == URL


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("registration_code", "opensesame"),
        ("database_url", URL),
        ("listener_database_url", URL),
        ("token_keys", f"{KEY}\n{OTHER_KEY}\n"),
    ],
)
def test_secrets_may_come_from_files(key: str, text: str) -> None:
    write(Path("secret"), text + "\n")
    name = f"ORBITAL_{key.upper()}"
    others = {"ORBITAL_DATABASE_URL": URL, "ORBITAL_TOKEN_KEYS": KEY}
    others.pop(name, None)
    settings = config.load(environ=others | {f"{name}_FILE": "secret"})
    assert settings.model_dump() == config.load(environ=others | {name: text}).model_dump()
    assert sources(settings)[key] == f"environment {name}_FILE"


def test_a_secret_and_its_file_exclude_one_another() -> None:
    environ = {"ORBITAL_REGISTRATION_CODE": SECRET, "ORBITAL_REGISTRATION_CODE_FILE": str(write(Path("c"), SECRET))}
    [line] = problems(environ)
    assert "ORBITAL_REGISTRATION_CODE_FILE" in line
    assert SECRET not in line


def test_a_secret_file_that_cannot_be_read() -> None:
    [line] = problems({"ORBITAL_REGISTRATION_CODE_FILE": "absent"})
    assert line == (
        "environment ORBITAL_REGISTRATION_CODE_FILE = absent: must be a readable file (No such file or directory)"
    )
    Path("binary").write_bytes(b"\xff\xfe")
    [line] = problems({"ORBITAL_REGISTRATION_CODE_FILE": "binary"})
    assert "UTF-8" in line


def test_only_secrets_come_from_files() -> None:
    [line] = problems({"ORBITAL_LISTEN_PORT_FILE": "x"})
    assert line.startswith("ORBITAL_LISTEN_PORT_FILE is not a setting")


def test_values_in_the_environment_are_text() -> None:
    settings = config.load(
        environ={
            "ORBITAL_ORIGINS": "https://a.example, http://localhost:3000",
            "ORBITAL_TRUSTED_PROXIES": "10.0.0.0/8,::1",
            "ORBITAL_ALLOW_NO_ORIGIN": "false",
            "ORBITAL_STATEMENT_TIMEOUT_S": "0.5",
            "ORBITAL_DATA_DIR": "/var/lib/orbital",
            "ORBITAL_LOG_LEVEL": "",
        }
    )
    assert settings.origins == ("https://a.example", "http://localhost:3000")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
    assert settings.allow_no_origin is False
    assert settings.statement_timeout_s == 0.5
    assert settings.data_dir == Path("/var/lib/orbital")
    assert settings.log_level == "info"


def test_values_in_the_file_are_typed() -> None:
    file = write(Path("t.toml"), 'origins = ["https://a.example"]\nallow_no_origin = false\npool_idle_s = 1.5')
    settings = config.load(environ={}, file=file)
    assert (settings.origins, settings.allow_no_origin, settings.pool_idle_s) == (("https://a.example",), False, 1.5)
    [line] = problems(file=write(Path("t.toml"), "listen_port = true"))
    assert line == "listen_port = true (t.toml): must be a whole number from 0 to 65535"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("LISTEN_PORT", "65536", "listen_port = 65536 ({}): must be a whole number from 0 to 65535"),
        ("LISTEN_PORT", "http", "listen_port = http ({}): must be a whole number from 0 to 65535"),
        ("RING_BYTES", "-1", "ring_bytes = -1 ({}): must be a whole number from 0 to 68719476736"),
        ("STATEMENT_TIMEOUT_S", "nan", "statement_timeout_s = nan ({}): must be a number from 0.05 to 300"),
        ("LOG_LEVEL", "loud", "log_level = loud ({}): must be one of debug, info, warning, error"),
        ("REGISTRATION", "o\npen", "registration = 'o\\npen' ({}): must be one of open, code, closed"),
        ("ALLOW_NO_ORIGIN", "perhaps", "allow_no_origin = perhaps ({}): must be true or false"),
        ("TLS_CERT", "absent.pem", "tls_cert = absent.pem ({}): must be a file that exists"),
        (
            "TRUSTED_PROXIES",
            "::1 10.0.0.1/8",
            "trusted_proxies = 10.0.0.1/8 ({}): must be a list: networks of proxies whose X-Forwarded-For is believed",
        ),
        (
            "ORIGINS",
            "https://a.example/",
            "origins = https://a.example/ ({}): must be origins as browsers send them, lower case, without a path:"
            " https://chat.example.org",
        ),
    ],
)
def test_a_wrong_value_is_one_line(name: str, text: str, line: str) -> None:
    assert problems({f"ORBITAL_{name}": text}) == [line.format(f"environment ORBITAL_{name}")]


@pytest.mark.parametrize("text", ["https://A.example", "*", "null", "https://a.example/chat", "a.example"])
def test_origins_are_exact(text: str) -> None:
    [line] = problems({"ORBITAL_ORIGINS": text})
    assert line.startswith("origins = ")


def test_every_wrong_value_gets_its_line() -> None:
    environ = {"ORBITAL_LANES": "0", "ORBITAL_MAX_BATCH": "x", "ORBITAL_ORIGINS": "* null"}
    assert sorted(line.split(" = ")[0] for line in problems(environ)) == ["lanes", "max_batch", "origins"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TOKEN_KEYS", f"a:{SECRET}"),
        ("TOKEN_KEYS", f"{KEY} {SECRET}"),
        ("TOKEN_KEYS", f"a:{SECRET}{'A' * 47}"),
        ("TOKEN_KEYS", f"a:{SECRET}!{KEY}"),
        ("DATABASE_URL", f"mysql://u:{SECRET}@h/d"),
        ("DATABASE_URL", f"postgresql://u:{SECRET}/x@h/d"),
        ("REGISTRATON_CODE", SECRET),
        ("REGISTRATION_CODE", " "),
    ],
)
def test_an_error_never_shows_a_secret(name: str, text: str) -> None:
    [line] = problems({f"ORBITAL_{name}": text})
    assert SECRET not in line
    assert KEY not in line


def test_an_error_does_not_carry_a_secret_in_its_chain() -> None:
    """A traceback prints the cause, and pydantic's shows the input."""
    with pytest.raises(ConfigError) as caught:
        config.load(environ={"ORBITAL_DATABASE_URL": f"mysql://u:{SECRET}@h/d"})
    assert caught.value.__suppress_context__
    with pytest.raises(ValidationError) as invalid:
        Settings(database_url=f"mysql://u:{SECRET}@h/d")
    assert SECRET not in str(invalid.value)


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"ORBITAL_LISTN_PORT": "1"},
            "ORBITAL_LISTN_PORT is not a setting; did you mean ORBITAL_LISTEN_PORT? (environment)",
        ),
        ({"ORBITAL_ZZZZZZZZZZZZ": "1"}, "ORBITAL_ZZZZZZZZZZZZ is not a setting (environment)"),
    ],
)
def test_unknown_variables_are_refused(environ: dict[str, str], line: str) -> None:
    assert problems(environ) == [line]


def test_unknown_keys_of_the_file_are_refused() -> None:
    [first, second] = problems(file=write(Path("t.toml"), "listen_prot = 1\n[limits]\npage_limit = 5"))
    assert first == "listen_prot is not a setting; did you mean listen_port? (t.toml)"
    assert second.startswith("limits is not a setting")


def test_unknown_flags_are_refused() -> None:
    assert problems(flags={"lane": 2}) == ["lane is not a setting; did you mean lanes? (command line)"]


def test_other_variables_are_none_of_our_business() -> None:
    assert config.load(environ={"HOME": "/", "ORBITALS": "9", "orbital_lanes": "x"}) == Settings()


def test_the_variables_of_clients_are_no_mistake() -> None:
    """A shell in which `orbital` was used starts a relay too."""
    said = {"ORBITAL_STORE": "a.db", "ORBITAL_PASSPHRASE": "x", "ORBITAL_URL": "ws://h", "ORBITAL_BOT_SECRET": "x"}
    assert config.load(environ=said) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen_port", "must be TOML: "),
        ("lanes = 2\nlanes = 3", "must be TOML: "),
    ],
)
def test_a_file_that_is_not_toml(text: str, expected: str) -> None:
    [line] = problems(file=write(Path("t.toml"), text))
    assert line.startswith(f"config = t.toml: {expected}")


def test_a_named_file_must_be_there() -> None:
    [line] = problems({"ORBITAL_CONFIG": "absent.toml"})
    assert line == "config = absent.toml: must be a readable TOML file (No such file or directory)"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"ORBITAL_REGISTRATION": "code"}, "registration_code = not set: must be given where registration = code"),
        (
            {"ORBITAL_DATABASE_URL": URL},
            "token_keys = not set: must be given beside database_url, the same on every relay of that database",
        ),
        ({"ORBITAL_TOKEN_KEYS": ","}, "token_keys = none: must hold at least one key"),
        ({"ORBITAL_TOKEN_KEYS": f"{KEY},{KEY}"}, "token_keys = a:***, a:***: must not use a kid twice"),
        (
            {"ORBITAL_LISTENER_DATABASE_URL": URL},
            "listener_database_url = postgresql://***@db.example:5433/orbital:"
            " must be given only together with database_url",
        ),
        (
            {"ORBITAL_POOL_MIN": "9"},
            "pool_min = 9: must be at most pool_max - lanes = 8: each lane has one of the connections",
        ),
        ({"ORBITAL_LANES": "10"}, "lanes = 10: must be below pool_max = 10"),
        (
            {"ORBITAL_MAX_FRAME_BYTES": "16384", "ORBITAL_MAX_UNAUTHENTICATED_FRAME_BYTES": "16385"},
            "max_unauthenticated_frame_bytes = 16385: must be at most max_frame_bytes = 16384",
        ),
        (
            {"ORBITAL_MAX_BODY_BYTES": "1048576"},
            "max_body_bytes = 1048576: with max_title_bytes, must leave 4096 bytes of max_frame_bytes = 1048576",
        ),
        (
            {"ORBITAL_MAX_BACKUP_BYTES": "1048576"},
            "max_backup_bytes = 1048576: must leave 4096 bytes of max_frame_bytes = 1048576",
        ),
        (
            {"ORBITAL_LOGIN_BACKOFF_MAX_S": "0.5"},
            "login_backoff_base_s = 1: must be at most login_backoff_max_s = 0.5",
        ),
    ],
)
def test_values_that_do_not_go_together(environ: dict[str, str], line: str) -> None:
    assert problems(environ) == [line]


def test_a_certificate_goes_with_its_key() -> None:
    write(Path("x.pem"), "")
    assert problems({"ORBITAL_TLS_CERT": "x.pem"}) == ["tls_cert = x.pem: must be given together with tls_key"]
    assert problems({"ORBITAL_TLS_KEY": "x.pem"}) == ["tls_cert = not set: must be given together with tls_key"]
    assert config.load(environ={"ORBITAL_TLS_CERT": "x.pem", "ORBITAL_TLS_KEY": "x.pem"}).tls_key == Path("x.pem")


def test_description_masks_secrets() -> None:
    settings = config.load(
        environ={
            "ORBITAL_DATABASE_URL": URL,
            "ORBITAL_LISTENER_DATABASE_URL": f"postgresql:///orbital?host=/run&password={SECRET}",
            "ORBITAL_TOKEN_KEYS": f"{KEY} {OTHER_KEY}",
            "ORBITAL_REGISTRATION_CODE": SECRET,
        }
    )
    rows = shown(settings)
    assert rows["database_url"] == "postgresql://***@db.example:5433/orbital"
    assert rows["token_keys"] == "a:***, b:***"
    assert rows["registration_code"] == "***"
    assert rows["origins"] == "none"
    assert rows["tls_cert"] == "not set"
    assert rows["allow_no_origin"] == "true"
    everything = f"{rows} {settings!r} {settings}"
    for secret in (SECRET, KEY.split(":")[1], OTHER_KEY.split(":")[1]):
        assert secret not in everything


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:12/{SECRET}@h/d",
        f"postgresql://u:12?{SECRET}@h/d",
        f"postgresql://u:12#{SECRET}@h/d",
        f"postgresql://u:p@{SECRET}@h/d",
    ],
)
def test_a_password_that_is_not_escaped_is_masked_too(url: str) -> None:
    settings = Settings(database_url=url, token_keys=(TokenKey.parse(KEY),))
    assert SECRET not in shown(settings)["database_url"]
    assert "12" not in shown(settings)["database_url"]


def test_token_keys_are_decoded_once() -> None:
    settings = config.load(environ={"ORBITAL_TOKEN_KEYS": f"{KEY},{OTHER_KEY}"})
    assert settings.token_keys == (TokenKey("a", bytes(range(32))), TokenKey("b", bytes(range(1, 33))))


def test_limits_are_a_part_of_the_settings() -> None:
    settings = Settings(page_limit=7)
    assert type(settings.limits) is Limits
    assert settings.limits == Limits(page_limit=7)
    assert settings.limits is settings.limits


def test_settings_and_limits_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().listen_port = 1
    with pytest.raises(ValidationError):
        Settings().limits.page_limit = 1


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            shape = config._shapes()[name]
            assert {"minimum", "maximum"} <= set(shape), name


def test_units_are_in_the_names() -> None:
    for name, field in Settings.model_fields.items():
        if re.search(r"timeout|ttl|backoff|idle", name):
            assert name.endswith(("_s", "_ms")), name
        assert field.annotation is not float or name.endswith("_s"), name


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, []),
        ({"listen_host": "::1", "operators_host": "localhost"}, []),
        ({"listen_host": "0.0.0.0"}, ["listen_host"]),  # noqa: S104 - nothing is bound here
        ({"listen_host": "relay.example", "trusted_proxies": "10.0.0.0/8"}, []),
        ({"listen_host": "relay.example"}, ["listen_host"]),
        ({"operators_host": "10.0.0.7"}, ["operators_host"]),
    ],
)
def test_warnings_name_what_is_rarely_meant(given: dict[str, object], named: list[str]) -> None:
    found = config.warnings(config.load(given, {}))
    assert [line.split(" = ")[0] for line in found] == named
