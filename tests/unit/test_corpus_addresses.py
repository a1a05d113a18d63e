"""Tricks with addresses: none of them makes the fetcher look a name up or send a packet."""

import socket
from ipaddress import ip_address

import pytest

from audit.corpus.addresses import Blocked, allow_list, check, is_public, target
from audit.corpus.fetch import FetchStatus, RemoteImages
from audit.errors import InputError

SCHEMES = """
file:///etc/passwd
file://localhost/etc/passwd
ftp://example.com/a.png
gopher://example.com:80/_GET
dict://example.com:80/x
ldap://example.com/a
tftp://example.com/a.png
jar:http://example.com/a.png!/b
data:image/png;base64,iVBORw0KGgo=
javascript:alert(1)
blob:http://example.com/a
view-source:http://example.com/a.png
ws://example.com/a.png
httpx://example.com/a.png
http:example.com/a.png
http:/example.com/a.png
http:///example.com/a.png
//example.com/a.png
/etc/passwd
example.com/a.png
http://
https://?a.png
""".split()
IPV4 = """
http://127.0.0.1/
http://127.1.2.3/
http://127.1/
http://127.0.1/
http://2130706433/
http://017700000001/
http://0177.0.0.1/
http://0x7f000001/
http://0x7f.0.0.1/
http://0X7F.1/
http://0x7f.0.0.0x1/
http://127.0.0.1./
http://127.000.000.001/
http://4294967297/
http://127.0.0.256/
http://127.0.0.1.1/
http://1.2.3.0x/
http://0/
http://0.0.0.0/
http://10.0.0.1/
http://172.16.0.1/
http://172.31.255.255/
http://192.168.1.1/
http://169.254.169.254/latest/meta-data/
http://100.100.100.200/latest/meta-data/
http://100.64.0.1/
http://168.63.129.16/metadata
http://192.0.0.192/opc/v1/
http://192.88.99.1/
http://198.18.0.1/
http://203.0.113.9/
http://224.0.0.1/
http://255.255.255.255/
http://240.0.0.1/
""".split()
IPV6 = """
http://[::]/
http://[::1]/
http://[0:0:0:0:0:0:0:1]/
http://[::ffff:127.0.0.1]/
http://[::ffff:7f00:1]/
http://[::ffff:8.8.8.8]/
http://[::127.0.0.1]/
http://[::ffff:0:127.0.0.1]/
http://[64:ff9b::127.0.0.1]/
http://[64:ff9b::a00:1]/
http://[64:ff9b:1::808:808]/
http://[2002:7f00:1::]/
http://[2002:c0a8:101::1]/
http://[2001:0:7f00:1::]/
http://[2001:db8::1]/
http://[3fff::1]/
http://[fe80::1]/
http://[fe80::1%25eth0]/
http://[fe80::1%eth0]/
http://[2606:4700::1111%25lo]/
http://[fc00::1]/
http://[fd00:ec2::254]/latest/meta-data/
http://[fec0::1]/
http://[ff02::1]/
http://[5f00::1]/
http://[100::1]/
http://[::1
http://::1/
http://[::1]example.com/
http://[v1.fe80::1]/
http://[2606:4700::1111]:22/
http://[1.1.1.1]/
""".split()
NAMES = """
http://localhost/
http://LOCALHOST/
http://localhost.:80/
http://a.localhost/
http://printer.local/
http://metadata.google.internal/
http://router.home.arpa/
http://a.onion/
http://intranet/
http://example.com./
http://example..com/
http://.example.com/
http://example.com%2f@127.0.0.1/
http://127.0.0.1%2eexample.com/
http://%31%32%37.0.0.1/
http://%6c%6f%63%61%6c%68%6f%73%74/
http://exa<mple.com/
http://exa'mple.com/
http://a,b.example.com/
http://example.com:80:80/
http://１２７.0.0.1/
http://127。0。0。1/
http://127．0．0．1/
http://①②⑦.0.0.1/
http://ｌｏｃａｌｈｏｓｔ/
http://ⓔxample.com/
http://example．com/
http://faß.de/
http://exam\u00adple.com/
http://example.com／@evil.com/
http://℀.example.com/
""".split()
NAMES += [f"http://{'a' * 64}.com/", f"http://{'a.' * 127}com/", f"http://{'ü' * 300}.com/"]
AUTHORITY = """
http://user@example.com/
http://user:password@example.com/
http://@example.com/
http://example.com@127.0.0.1/
http://127.0.0.1:80@example.com/
http://example.com:22/
http://example.com:25/
http://example.com:6379/
http://example.com:0/
http://example.com:/
http://example.com:080/
http://example.com:+80/
http://example.com:-80/
http://example.com:８０/
http://example.com:65536/
http://example.com:99999999999/
http://example.com:http/
http://:80/
""".split()
WRITING = [
    "",
    " ",
    " http://example.com/a.png",
    "http://example.com/a.png ",
    "http://example.com/a b.png",
    "http://example.com/\r\nX-Injected: 1",
    "http://example.com\r\nHost: 127.0.0.1/",
    "http://example.com/%0d%0a\n",
    "ht\ntp://example.com/",
    "http://exam\tple.com/",
    "http://example.com/\x00.png",
    "http://127.0.0.1\x00.example.com/",
    "http://example.com/\x7f",
    "http://example.com/\x85",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\example.com\\a.png",
    "http://example.com/a\\b.png",
    "http://example.com/\u202egnp.exe",
    "http://exa\u200bmple.com/",
    "\ufeffhttp://example.com/",
    "http://example.com/\u2028",
    "http://example.com/\ud800",
    "http://example.com/" + "a" * 5000,
]
TRICKS = SCHEMES + IPV4 + IPV6 + NAMES + AUTHORITY + WRITING


@pytest.fixture
def packets(monkeypatch):
    """Whatever would leave the process: recorded, and not sent."""
    seen = []

    def refuse(name):
        def call(*arguments, **_):
            seen.append((name, arguments))
            raise OSError("nothing leaves this test")

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    return seen


@pytest.fixture(scope="module")
def looked_up():
    return []


@pytest.fixture(scope="module")
def images(tmp_path_factory, looked_up):
    """A fetcher whose resolver would give a public address for anything."""

    def resolver(host, port):
        looked_up.append(host)
        return ["93.184.215.14"]

    with RemoteImages(tmp_path_factory.mktemp("tricks"), resolve=resolver) as images:
        yield images


@pytest.mark.parametrize("url", TRICKS, ids=lambda url: ascii(url)[:60])
def test_trick_is_blocked_before_anything_is_looked_up_or_sent(url, images, looked_up, packets):
    outcome = images.get(url)
    assert outcome.status is FetchStatus.BLOCKED and outcome.lasting and outcome.path is None
    assert not packets and not looked_up
    assert outcome.reason.endswith(".") and outcome.reason.count(". ") == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://user:password@example.com/", "a user name or a password"),
        ("ftp://example.com/", "Only http and https"),
        ("http://example.com:22/", "another port than 80, 443, 8080, 8443"),
        ("http://0x7f.1/", "number that is no plain IPv4 address"),
        ("http://10.0.0.1/", "private, loopback or otherwise reserved"),
    ],
)
def test_reason_says_what_is_wrong_without_repeating_it(url, words):
    with pytest.raises(Blocked, match=words) as caught:
        target(url)
    assert "example" not in str(caught.value) and "password@" not in str(caught.value)


def test_the_table_holds_at_least_sixty_different_tricks():
    assert len(set(TRICKS)) == len(TRICKS) >= 60


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["93.184.215.14", "192.168.0.1"],
        ["93.184.215.14", "::1"],
        ["2606:4700::1111", "fe80::1%2"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::10.0.0.1"],
        ["2002:a00:1::"],
        ["fd00::1"],
        ["0.0.0.0"],
        ["224.0.0.251"],
    ],
    ids=",".join,
)
def test_name_that_leads_to_any_private_address_is_blocked(answers, tmp_path, packets):
    with RemoteImages(tmp_path, resolve=lambda host, port: answers) as images:
        assert images.get("http://pictures.example.com/a.png").status is FetchStatus.BLOCKED
    assert not packets


def test_public_host_is_connected_to_by_the_address_that_was_checked(images, looked_up, packets):
    """The other way round: the recorder sees what is not blocked, so the tests above can fail."""
    assert images.get("http://pictures.example.com/a.png").status is FetchStatus.DEAD
    assert looked_up == ["pictures.example.com"]
    assert [(name, arguments[-1]) for name, arguments in packets] == [("connect", ("93.184.215.14", 80))]
    looked_up.clear()


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://Example.COM", "example.com", 80, "/"),
        ("HTTPS://example.com:8443?q=1#part", "example.com", 8443, "/?q=1"),
        ("http://example.com:80#@127.0.0.1:22/", "example.com", 80, "/"),
        ("http://example.com/http://127.0.0.1/", "example.com", 80, "/http://127.0.0.1/"),
        ("http://example.com//x/../y", "example.com", 80, "//x/../y"),
        ("http://bücher.example/ä b".replace(" ", "%20"), "xn--bcher-kva.example", 80, "/%C3%A4%20b"),
        ("http://BÜCHER.example/?é", "xn--bcher-kva.example", 80, "/?%C3%A9"),
        ("http://my_bucket.s3-.example.com/[1]%20~|", "my_bucket.s3-.example.com", 80, "/[1]%20~|"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/"),
        ("http://[2606:4700:0:0::1111]/", "2606:4700::1111", 80, "/"),
        ("http://[64:ff9b::808:808]:8080/", "64:ff9b::808:808", 8080, "/"),
        ("http://localhost.example.com/", "localhost.example.com", 80, "/"),
    ],
)
def test_ordinary_address_keeps_its_parts(url, host, port, path):
    asked = target(url)
    assert (asked.host, asked.port, asked.path) == (host, port, path)
    assert asked.scheme == url.partition(":")[0].lower()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("100.63.255.255", True),
        ("100.64.0.0", False),
        ("100.128.0.0", True),
        ("172.15.255.255", True),
        ("172.32.0.0", True),
        ("126.255.255.255", True),
        ("128.0.0.0", True),
        ("168.63.129.15", True),
        ("223.255.255.255", True),
        ("224.0.0.0", False),
        ("2001:1ff:ffff::", False),
        ("2001:200::1", True),
        ("2003::1", True),
        ("1fff::1", False),
        ("4000::1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::1:8.8.8.8", False),
        ("2606:4700::1111%1", False),
    ],
)
def test_edges_of_the_networks(address, public):
    assert is_public(ip_address(address)) is public


def test_allow_list_frees_one_address_at_one_port():
    allowed = allow_list(["127.0.0.1:8000", "[::1]:8000"])
    assert target("http://127.0.0.1:8000/", allowed).port == 8000
    assert target("http://[::1]:8000/", allowed).host == "::1"
    for url in ("http://127.0.0.2:8000/", "http://127.0.0.1:8080/", "http://8.8.8.8:8000/", "http://[::1]/"):
        with pytest.raises(Blocked):
            target(url, allowed)
    with pytest.raises(Blocked):
        check([ip_address("127.0.0.1"), ip_address("10.0.0.1")], 8000, allowed)


@pytest.mark.parametrize("entry", ["127.0.0.1", "localhost:80", "127.0.0.1:", "10.0.0.0/8:80", ""])
def test_allow_list_wants_addresses_with_ports(entry):
    with pytest.raises(InputError, match="is no address with a port"):
        allow_list([entry])
