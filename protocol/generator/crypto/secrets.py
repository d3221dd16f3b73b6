"""What is random among clients, fixed for the vectors: keys, and bytes that RSA-OAEP made once.

The keys guard nothing.
"""

import base64
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from generator import world
from generator.world import Person, stretch
from orbital_client.crypto.contents import Head
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.identity import Identity

Case = dict[str, Any]
"""A JSON object, but for bytes."""

SECRET: Final = stretch("link secret", 32)
"""S, of an invite link."""
SEGMENT_KEY: Final = stretch("file key", 32)
HEAD: Final = Head(5, stretch("head", 32))
"""What every author and inviter had verified last."""


def nonce(name: str) -> bytes:
    return stretch(f"nonce {name}", 12)


def group_key(epoch: int) -> GroupKey:
    """The key of the group in this epoch."""
    return GroupKey(world.GROUP, epoch, stretch(f"group key {epoch}", 32))


KEY: Final = group_key(2)


def refused(name: str, outcome: str, **case: Any) -> Case:
    """A case that must not open, and as what it fails."""
    return {"name": name, **case, "outcome": outcome}


def altered(sealed: bytes) -> bytes:
    """Another last byte."""
    return sealed[:-1] + bytes((sealed[-1] ^ 1,))


def version_2(sealed: bytes) -> bytes:
    return b"\x02" + sealed[1:]


def _identity(person: Person, pkcs8: str) -> Identity:
    key = load_der_private_key(_bytes(pkcs8), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("no RSA key")
    return Identity(person.user_id, person.private_key, key, is_bot=person.is_bot)


def _bytes(text: str) -> bytes:
    return base64.b64decode("".join(text.split()))


# What follows was random once. OAEP gives other bytes each time, so that these can be opened only, not made again:
# each was encrypted with the label of section 18.3 of SPEC.md, wrapper Alice, epoch 2 unless it says otherwise.

_BOBS_RSA_KEY: Final = """
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQChOlgTwVqp4nURGIjaopp7XOJpUOpJmV09Lrl1GPWktBd8kSLz9xBRvun0DPM2STCZ
UHgAhDgYgzWUgAwOzJGaz3b2DL4CaZITC6GV3+OnsSsYM858ytj0sRyCozCJuAnATANgcshXQgMSDcRDCi78X3gk2gT919FlFEQr5y2WpM/7EcuHEp4s
v0FPsykGpraL1aoU6EYYUMGXsodYR5c2600CpFC8kLvckftfXdU12I6P8SMDV8jXnuMIG9v0oIkXXSESye8lu4M7uqCEBA//TJg/5hS7zOa9IAVU5HWm
NL+KXUVIRSq8gakYWSvqOajNGimP3HzBBDy9slk1re2HAgMBAAECggEAIphg1thZ6nMfuIvhrbxPVqIvKPcGVsWURrEUdWZmKzHDimSgMeY1N701+Tqg
I2lgBr3ICiBU4xmgcR1quPA3XBchSRmh2eWqRPDterngYRa4jwhqycdC93pbikKXAy4c1YjZ/qOSjnqpKwION25jd57KqmmnwYpCMaTAHgWMeDLMsrg9
F862mjvjxWzQDXQezJ4uIGz5OnsKAdKsVhKZLPcY3EI4LE9w6gk8uSBcThhmh4L0I5dV0BG09KboACKjhAE6UPElQxPJcfhVfM/zBpKF0e+0cpNK3sqX
+Hagg9h07N931FQFjjLbWwumYb5mGeLx2W8AZQD5VtrmA8aBPQKBgQDdtsaAqUOi8dwe7xokBqlubFdJR6v9fxclC0iT8V/7O6tQxMf3v9GJ96RDnm0Y
hM2hV5ufmI+otrT0ZZABTES+QDY2UZvTFaTYNyyDL7Tu+EQ8L0qxH3/dEALDLAHlCPMLsTZCWI7br2ZqbP3HlHJzhrQHWS86qlUl6fKliXi37QKBgQC6
KQsPvNEFm4aS3bAju7qKJW2+cYUI65O7m5fVCqVSiNIpPI7C8hqyCScVmZ4Eb6O0hh83Qgy9Y6/1rGy7GXgm8XZM/ebYOE0gUD5/iiZfSUlu8ZFloErd
BOo8V6QwEUh/OOjilz3C1ihsgDZdi/e5zFQGaJPwXBKUTexzY76kwwKBgA1rpeJd3JE9cKSStpNdr93WQwZVh0yl58G/SBpkbvnnJ7yQ3MXbX5SpX9EU
AuiMCWJtyibD9lYxEQ0GJMxfUH3vpxhsojEJy1unI1OhjKM2dfLqrevAy12XPYOQ42B4xTV8+ZrUf3k+ycVBaa8uBiuGCNm1BU3Yx6Su35gzlRIVAoGA
KcdUSC/j6RJCXWuLQDm9X4uO2ZK4fIwCF7SPmqxM9fzmzYJdt7qF6zbKorpbEDvNzZHcJ5aXLVnV/5i2vja1FGhUWGsTB6t7A6l+nTjv66qS5GcqblhO
9NNJjklM+8ylLIglG9U9cyCE6fTMPqpO6k/E+7s0mFjRgp8KVcso2ekCgYEAhOCPmVfWTtrkggu+u3bV8rn7hiQyPK7UhCEtdgHzk1NDrDv+uRkm5SHA
3WGyTLT4ooUgaCWC1a84a17q9IoJ9huvVogQQ/KCO7nGS8tjiuapubp4xKJske9jBeMSNKK9ddU1OGSHoa2cD/WFqIMXGP5NmKrDoeITNqi6n+t+NIg=
"""

_CAROLS_RSA_KEY: Final = """
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC5sS1S2rXdTcM7aczX4IeqYp4PjKAzS+eAcyjvxZkBVcTqKOzRQmJyndm/vu7bMtkq
l+Hh6YjUMSrSH2o0P2T8zFrzuLgvwHkiptHwNFAXRVukMZK5ACYmhKqNyfyElJuL4gGb/SMf8COS6GNv9X/2RM59vrs7p2W12IO5rqopighzCmKjmSWS
5Ll6xgiwwMjpwD0D58feIQbMHqsz5kIEBy2yJX0D7Oj/r/RyPC+0Hbw86dBDHMflRRJxPZ78qRd9nuYRtZZIx3OnGctQ+CMUcKRl6hg3uFMm4ojGLi6H
U/NLH7tZbhyuC7kOAQaT8IQstCbZiLw63SkLp2oczozZAgMBAAECggEABvVGaUEkSPFhxC9r+1fgxYfx+8utchahS10lVsy89cGYwhx7+UBnT3uuPeLh
8OlIHXI5Bt3ZIHhiLiL6uA/7EQT4UIMmtbVc5KlDGyDesmyJKU8pPBDvHQjiGjOMKIyoAncaz9VNtGPrdVULatXUcG42HZygx/S3GTgOgY3ztuAyptH8
64In5jUmeqaeNefKSxLMhk5UWGv01/W46TJYwgUPIg4zKQMNlHw1a8ItFd7m+Yw4TT6YZrQDxNTBd/tPlb6eKv+aGR6+qqADTXJw9XScu3YHY9Hn5pZC
63BCXJKMoZ/qhdzu/KSakECInTLOhTtmiFIKLqqaBzpdGGcljQKBgQDdcoXx+MKm/dwLc5DPUI90MU6cFQFZHC+dm2xj4G7UkQr8xiwBHS1YFBbiiO4M
b9nzp/KJCQXDOrEmo2r5CH0hL+nr07/TSK8OYCslEBhb+Yhv+ln/Rj70t9H8eIzLN0q4RnGhEpi3fDx8ohCNq/R2KlZxvCyiTYEGdfbiPdDtvQKBgQDW
qnLMMefVuCIfSQClmxdTvo8D+zCxCAQzEdU9gmbve5q7ZkWCIk1bIDYtW3g3iZbOCK8NUovPSaongBsD5/ImuDluGS96NtB2cGCEy36oO7X3EHOTa8Zi
Dp745+UDAfc6HTLlQ9dQO7q69tX7Xu/BzVBCIqSGeh0FOz3715BnTQKBgQCmCf+ara2trjx2LaGPgFT/hxTs/Ob03KhrISVFQft30IUPgLtv3mOoXe/G
zWrH0nn2MqAs1aIHfxNi6DcGILJJ1vYrB6sWDbKMMdlHweix1cjSRUGDoTUFImsFRZIzsPKKdu8uGZZ+RV3JCW8l+p+ilh4Yy0IgM8KhiIOjoTvtdQKB
gCuEpn0q6Nr010YMYKsyA8qgaRHfjIF3JJLN3LL5irCmGDpBg3ncRl5g61rKnlZz+DSQohxLTbiaMHqNh+yEyxx6YHondO6LyjsYkRiawHSOllcd6LBM
Ow2J9UR0joLLlTkczkKYPEAxu6tHex3YozZgzxJ5P21buCJlXi1+B/JJAoGAdnB9jY/HyKaOOPY0HKBRuEgyy7oBrOBS35gnUjwaE7C8dRq2etac3Cih
55d47acqek6KdI2oH+fUO45wXC0Cq1DPJNr2Kme+LP/TN3rnRZlB6R3s4ASpINiDeOwyeLKrXsD+FUtcWboi6pUc2yJjp+1MVBfmXGNeHwBSsKV/ndM=
"""
WRAPPED_FOR_BOB: Final = _bytes("""
bL42nuShF8mtTUmEihWc96IVz3RjqSkkzx8VrFJLiblWs1/OYEs/HnrUg2FrApBJKObHq+RhdhjAk31Co3qmPOKsH0nOzQF0pzU04shjtp5kf97Wdj3V
F4z5GVuyJPBaxDpykm5kMnfLYuTktajuR17ecnhvSew7QyIApT83Xm86j+vzQptP5V1PXLZD3BuzsPRZFACa4LHPFg1srvbD8N/s87LUbuCFEzm6ADvz
fk6PfziWbQzXmtTp2tmn8u1TeyfrcDXRO7V/+UdBk8RR+T36H5ZleySfvbbGxoU/raksRLzZ5A+Op5+oJD77BIjPk9TUpvGtZyDz5jusYWqthw==
""")
WRAPPED_FOR_CAROL: Final = _bytes("""
fBy/VANr9zt7E3QHoP2GXj2UUz6D1W9CrjdZRgLEjODFfxdAvBTYYdxknhhuxm+tmaNhLLTD3lEn9juXgJg4M2mLLOoAoIJ9hIIlCYBg6QpPxLK2YeVG
5nOeD/7tkzGcgFJDEjs0kOzaelTiGFEmrvoWfAd9FdXrvzt3qgj+Zbasv/5yFP/+XJBGhf4aO1ZvXNRdAB30NH3baQWRl3gs1M4Jv73x/3mGtRhGcnxf
GPQBIawq0xDIYbLlsQZWmljeLdf4cMXgFfZYcOQUvPmdW5CoP7H096XVXLq7TJN5nEL+DkXDBi8A1IzUkzhyzF/fPpyIBQx+NekU7IuUSiC1uw==
""")
WRAPPED_UNDER_CAROLS_KEY: Final = _bytes("""
kYEW/Yk0qWTidly0Vwt+NZRgi0rTFGOEpRn3/ZHcbeyIQGcbGmTvSITp9URjbayqOBq8y5BQPbSJSEPaFY48EwrIcWf3l239r2i0USPEVBN/3kvJYozd
uHUIYMP/x3ADqF8qOyrTysRvubVVOshLKLi/QJSxsSwuFCXROhR5LAi2v3iZmYnGcoGcvhd2jAM91+Z74ZX/JF7PUCxN01FOAKuOHDm2P5Obiikapv8x
WEJIE/+ZxxhzWM1Jw1IpPFu002kyWz3MI0dCsQbQehJfF6AZwgxLALuoppHlx1trpR4pnKYqMcLoJySm/OYbsgSF2dKK/KrIY9edMNPsxegLSg==
""")
"""Under Carol's RSA key, with the label for Bob."""
WRAPPED_FOR_ANOTHER_EPOCH: Final = _bytes("""
P85fhTu5VMbexl9qM9JFaenZdV93CaAdoEzvI8Se+PEIQ0ES7S6YmXsYR+89i2vqxRTj9o3lpkE4VmRfTr/iAF4b8vsc+/YaO9HoaHnScZGDv2GO5reA
WpHLP29uL+1y9NBTLDspwjmLIp9Ih9gPPcANk5k27WmyHGSW6A7ZW7KlvAtM4B4lJ3BgELeydhUEvaqf+i2/vSqK044moHBpqGAyjwtJzAMczds16iwz
OwZY6hn5K3hIEnkq/lmyaXtAfxJeiwbFe4YZGrq+Ul5YoqFhsh/ArT8UNKSZfDqOxMPVKJMjhKxfHvnPo/b2N4QxIhv778FP9uCPF5pRHVQ2AA==
""")
"""Under Bob's RSA key, with the label of epoch 1."""
WRAPPED_ANOTHER_KEY: Final = _bytes("""
IAlBPjWoO7vvDhE/RRnOc2xn42KLhFdWdq4/nzO8H56Z2HfNFnCqMm9/obiOGBB4OsME9zrp+5jKzmzNWrguVl3GMpF8vrHooNXOeaaGmJqk2wK3OFZG
/hUATzdfQl7Cfvp6iIIAcltWKqwNeEbs51fXtK7FC2+kK+cnP77RNCY6bAk2z6ypH531iAxCYQa8DqbUIm9WPwrhKbsTP133bA++XGA6t5hr9T/q5///
hmds7DL4rwhzHMzJckzbR80EkjA8e3qHJ75p0Bm5SdPiHXCLKoPDFdd4C6ZuWy3kmJ/sQZjxBMDZwLivpzTJluolvl/jJf0DVL3pZsTGSfpSpA==
""")
"""For Bob, but the secret of `group_key(3)`."""
WRAPPED_SHORT_KEY: Final = _bytes("""
HsgzdQqReY93fyEbKoc3dcxgdj6XfWGPC/eVvAJY2DP1Dmg8z/Un/aZZIYCIIJS/xsaxpbs1N7a65otsQLmXWRA9g+uMnDF9An0U71OKCyzoL/HmzbM8
uGJdZJb4BGrt3Kz1X3U/7WCr5XaUvMCFRMJmQdBp7vAySm0r4jwFdXGp/uXSqM2h0rMLWig6EIPgHo454dixPvPG0uL7NKS6hUIdGZ8UUjc82wDgv+Gi
DBg962+aR22aWAVXsmg0WMcxuWzDfXQBNkle3DMjHDkRAQu328K9PkSyUfd0UzQJugulczAeCBAxj9/akwTDQjfvXnH8XHLuCbGvnOVOPmstEA==
""")
"""For Bob, but 31 bytes."""

BOB: Final = _identity(world.BOB, _BOBS_RSA_KEY)
CAROL: Final = _identity(world.CAROL, _CAROLS_RSA_KEY)
