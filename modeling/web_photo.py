"""A photo by its address on the web, as programs and assistants name it. Needs what gradio brings along.

Whoever asks decides where this server reads from. So it reads from public addresses only (the address that was checked
is the one that is asked, and every redirection is checked again), not for long, and not more than a photo's worth.
"""

from __future__ import annotations

import asyncio

import httpx
from safehttpx import AsyncSecureTransport, async_validate_url

from .errors import ImageError

SECONDS = 10.0
REDIRECTIONS = 3


def is_address(text: object) -> bool:
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def fetch_photo(address: str, most: int) -> bytes:
    """The file at a public http or https address.

    Args:
        address: Where it is.
        most: Bytes it may have.

    Raises:
        ImageError: nothing there, too large, too slow, or an address of a private network, in one sentence.
    """
    try:
        return asyncio.run(_fetch(httpx.URL(address), most))
    except ImageError:  # is a ValueError
        raise
    except TimeoutError:
        raise ImageError(
            f"The photo's address did not answer within {SECONDS:.0f} seconds: upload the photo."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
        raise ImageError("There is no photo that can be read at this address: upload it instead.") from None


async def _fetch(address: httpx.URL, most: int) -> bytes:
    async with asyncio.timeout(SECONDS):
        for _ in range(REDIRECTIONS + 1):
            transport = AsyncSecureTransport(await async_validate_url(address.host))  # ValueError if it is not public
            async with (
                httpx.AsyncClient(transport=transport, trust_env=False) as client,
                client.stream("GET", address, headers={"Accept": "image/*"}) as answer,
            ):
                if answer.has_redirect_location:
                    address = address.join(answer.headers["location"])
                    if not is_address(str(address)):
                        raise ValueError("it leads out of the web")
                    continue
                answer.raise_for_status()
                return await _limited(answer, most)
    raise ValueError("it leads from one address to the next")


async def _limited(answer: httpx.Response, most: int) -> bytes:
    parts, size = [], 0
    async for part in answer.aiter_bytes():
        size += len(part)
        if size > most:
            raise ImageError(f"The photo is larger than {most // 10**6} MB: send a smaller copy of it.")
        parts.append(part)
    return b"".join(parts)
