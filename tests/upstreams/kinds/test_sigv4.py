"""Our signatures are those of botocore, for any request that we could send."""

import hashlib
from datetime import UTC, datetime
from urllib.parse import quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from farebox.secret import Secret
from farebox.upstreams.kinds.sigv4 import AwsKey, sign, signable_query

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda text: text not in {".", ".."}
)
PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


def botocores(
    method: str, url: str, headers: dict[str, str], body: bytes, key: AwsKey, region: str, service: str, at: str
) -> str:
    request = AWSRequest(method=method, url=url, headers={**headers, "x-amz-date": at}, data=body)
    request.context["timestamp"] = at
    token = key.session_token.reveal() or None
    if token:
        request.headers["x-amz-security-token"] = token
    auth = SigV4Auth(Credentials(key.access_key_id, key.secret_access_key.reveal(), token), service, region)
    canonical = auth.canonical_request(request)
    auth._inject_signature_to_request(request, auth.signature(auth.string_to_sign(request, canonical), request))
    return str(request.headers["Authorization"])


@given(
    method=st.sampled_from(["GET", "POST"]),
    segments=st.lists(TEXT, max_size=4),
    query=st.lists(st.tuples(TEXT, st.one_of(st.just(""), TEXT)), max_size=4),
    body=st.one_of(st.just(b""), st.binary(max_size=200)),
    secret=PLAIN,
    token=st.one_of(st.just(""), PLAIN),
    content_type=st.one_of(st.none(), st.sampled_from(["application/json", "text/plain;  charset=utf-8"])),
    host=st.sampled_from(["bedrock-runtime.us-east-1.amazonaws.com", "127.0.0.1:8081"]),
    region=st.sampled_from(["us-east-1", "cn-north-1"]),
    service=st.sampled_from(["bedrock", "bedrock-mantle"]),
    at=st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),  # noqa: DTZ001
)
def test_for_any_request_the_signature_is_that_of_botocore(
    method: str, segments: list[str], query: list[tuple[str, str]], body: bytes, secret: str, token: str,
    content_type: str | None, host: str, region: str, service: str, at: datetime,
) -> None:  # fmt: skip
    key = AwsKey("AKIDEXAMPLE", Secret(secret), Secret(token))
    path = "/" + "/".join(quote(segment, safe=":") for segment in segments)
    asked = signable_query("&".join(f"{quote(name)}={quote(value)}" for name, value in query))
    headers = [(b"host", host.encode())]
    headers += [(b"content-type", content_type.encode())] if content_type else []
    moment = at.replace(tzinfo=UTC, microsecond=0)
    ours = dict(
        sign(
            method, path, asked, headers, hashlib.sha256(body).hexdigest(), key=key, region=region, service=service,
            at_s=moment.timestamp(),
        )
    )  # fmt: skip
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    assert ours[b"x-amz-date"].decode() == stamp
    plain = {name.decode(): value.decode() for name, value in headers}
    url = f"https://{host}{path}" + (f"?{asked}" if asked else "")
    assert ours[b"authorization"].decode() == botocores(method, url, plain, body, key, region, service, stamp)


def test_the_example_that_aws_publishes_is_signed_as_published() -> None:
    """AWS's test suite for Signature Version 4, get-vanilla-query-order-key-case."""
    key = AwsKey("AKIDEXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"))
    added = dict(
        sign(
            "GET", "/", "Param2=value2&Param1=value1", [(b"host", b"example.amazonaws.com")],
            hashlib.sha256(b"").hexdigest(), key=key, region="us-east-1", service="service",
            at_s=datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp(),
        )
    )  # fmt: skip
    assert added[b"authorization"] == (
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
    )


def test_a_query_is_written_so_that_it_reads_in_one_way() -> None:
    assert signable_query("beta=true") == "beta=true"
    assert signable_query("a+b=c d&flag&x=%2f~é") == "a%20b=c%20d&flag=&x=%2F~%C3%A9"
    assert signable_query("") == ""
