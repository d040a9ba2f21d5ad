"""`aligngpt serve`, asked by OpenAI's own client over a socket."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from aligngpt.processing.command_output import Mistakes
from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import Sampling
from aligngpt.serving.batching import Row
from aligngpt.serving.listening import address_of, bind, is_loopback
from aligngpt.serving.serve_command import ServeArguments, find_problems


@pytest.fixture(scope="module")
def alone(steered, make_image):
    """A function that answers without a server, one conversation at a time."""
    assistant = Assistant(*steered)

    def answer(text, *seeds, level=None, **sampling):
        parts = [{"type": "image", "image": make_image(seed)} for seed in seeds]
        chat = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        inputs = assistant.prepare([chat], level)
        return assistant.answer(inputs, Sampling(**{"max_new_tokens": 8, **sampling}))[0]

    return answer


def complete(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_an_answer_is_the_one_that_the_model_gives(client, ask, alone):
    found = complete(client, ask("What is this?", 1))
    choice = found.choices[0]
    assert (choice.message.content, choice.finish_reason) == alone("What is this?", 1)
    assert found.model == "tiny" and found.usage.completion_tokens == 8
    assert client.models.list().data[0].id == "tiny"


def test_a_stream_has_the_same_answer_and_ends_as_openai_s_do(client, ask, alone):
    chunks = list(complete(client, ask("What is this?", 1), stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (text.strip(), chunks[-1].choices[0].finish_reason) == alone("What is this?", 1)
    assert chunks[-1].usage.completion_tokens == 8
    body = {"messages": ask("What is this?", 1), "stream": True}
    with client.chat.completions.with_streaming_response.create(model="tiny", **body) as response:
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_interface_gives_the_same(stream, client, data_url, alone):
    content = [{"type": "input_image", "image_url": data_url(1)}, {"type": "input_text", "text": "What is this?"}]
    request = {"model": "tiny", "input": [{"role": "user", "content": content}]}
    if stream:
        with client.responses.stream(**request) as events:
            found = events.get_final_response()
    else:
        found = client.responses.create(**request)
    assert found.output_text.strip() == alone("What is this?", 1)[0]


def test_instructions_and_earlier_turns_are_part_of_the_conversation(client, steered):
    turns = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
    ]
    found = client.responses.create(model="tiny", input=turns, instructions="Be polite.")
    told = complete(client, [{"role": "system", "content": "Be polite."}, *turns])
    assert found.output_text == told.choices[0].message.content
    inputs = steered[1].apply_chat_template(
        [{"role": "system", "content": "Be polite."}, *turns], add_generation_prompt=True, tokenize=True
    )
    assert told.usage.prompt_tokens == len(inputs[0])


@pytest.mark.parametrize("interface", ["chat", "responses"])
def test_levels_are_asked_for_by_the_arguments_of_the_template(interface, client, ask, data_url, alone):
    expected = {level: alone("What is this?", 1, level=level)[0] for level in (None, 0, "best")}
    assert len(set(expected.values())) > 1, "a test of nothing"
    for level, answer in expected.items():
        extra = {"chat_template_kwargs": {"alignment_level": level}}
        if interface == "chat":
            found = complete(client, ask("What is this?", 1), extra_body=extra).choices[0].message.content
        else:
            parts = [
                {"type": "input_image", "image_url": data_url(1)},
                {"type": "input_text", "text": "What is this?"},
            ]
            turns = [{"role": "user", "content": parts}]
            found = client.responses.create(model="tiny", input=turns, extra_body=extra).output_text
        assert found == answer


def test_the_gate_s_weights_are_told(client, ask, steered, make_image):
    found = client.post("/alignment_weights", body={"messages": ask("What is this?", 1)}, cast_to=object)
    parts = [{"type": "image", "image": make_image(1)}, {"type": "text", "text": "What is this?"}]
    inputs = steered[1].apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        expected = steered[0].get_alignment_weights(**inputs)[0]
    torch.testing.assert_close(torch.tensor(found["alignment_weights"]), expected, rtol=1e-4, atol=1e-6)


def test_thirty_two_clients_at_once_get_their_own_answers(client, ask, alone):
    def one(number):
        seeds = [number] * (number % 3)
        messages = ask(f"What is {number}?", *seeds)
        length = 3 + number % 5
        if number % 2:
            chunks = complete(client, messages, max_tokens=length, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
        return complete(client, messages, max_tokens=length).choices[0].message.content

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(one, range(32)))
    numbers = range(32)
    assert found == [alone(f"What is {n}?", *[n] * (n % 3), max_new_tokens=3 + n % 5)[0] for n in numbers]


def test_requests_of_one_batch_have_the_level_that_each_asked_for(serve, ask, alone, monkeypatch):
    levels, sizes, go_on = [None, 0, "best", "auto", 3], [], threading.Event()
    generate = Assistant.generate

    def wait(self, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        go_on.wait(30)
        return generate(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Assistant, "generate", wait)

    def one(level):
        extra = {"chat_template_kwargs": {"alignment_level": level}}
        return complete(client, ask("What is this?", 1), extra_body=extra).choices[0].message.content

    with serve() as client, ThreadPoolExecutor(6) as pool:
        first = pool.submit(one, None)
        while not sizes:
            time.sleep(0.01)
        calls = [pool.submit(one, level) for level in levels]
        time.sleep(1)  # until they wait
        go_on.set()
        found = [call.result() for call in [first, *calls]]
    assert sizes == [1, 5]
    monkeypatch.undo()
    assert found == [alone("What is this?", 1, level=level)[0] for level in [None, *levels]]


def test_a_seed_makes_sampling_the_same_whoever_else_asks(client, ask):
    def sample(seed):
        return complete(client, ask("What is this?", 1), temperature=2.0, seed=seed).choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(sample, [1, 2, 3, 4] * 3))
    assert found[:4] == found[4:8] == found[8:] and len(set(found)) > 1


def test_bytes_that_are_no_character_do_not_break_a_stream(serve, ask, steered, monkeypatch):
    monkeypatch.setattr(steered[0].generation_config, "suppress_tokens", None)
    with serve(sampling=Sampling(max_new_tokens=60, temperature=2.0)) as client:
        for seed in range(20):
            chunks = list(complete(client, ask("What is this?", 2), seed=seed, stream=True))
            assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(client, ask, alone):
    whole = alone("What is this?", 1)[0]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    expected = whole[: whole.index(stop)].strip()
    found = complete(client, ask("What is this?", 1), stop=[stop, "never said"]).choices[0]
    assert (found.message.content, found.finish_reason) == (expected, "stop")
    chunks = complete(client, ask("What is this?", 1), stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == expected


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"n": 2}, "n=2 is not done"),
        ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 is not done"),
        ({"logprobs": True}, "logprobs=True"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools="),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temprature": 1}, "temprature=1 is not known"),
        ({"generation_config": "{}"}, "generation_config"),
        ({"temperature": 3}, "temperature=3: a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 0}, "top_p=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 1.5}, "max_tokens=1.5: a whole number"),
        ({"seed": "x"}, "seed='x'"),
        ({"stop": [""]}, "stop is a text or a list"),
        ({"stop": list("abcde")}, "stop is a text or a list"),
        ({"chat_template_kwargs": {"alignment_level": 8}}, "0..7"),
        ({"chat_template_kwargs": {"alignment_level": [1]}}, "a number or a name"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs has \\['chat_template'\\]"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs has \\['tokenize'\\]"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs is an object"),
        ({"messages": []}, "no list of messages"),
        ({"messages": [{"role": "user"}]}, "neither role and content"),
        ({"messages": [{"role": "user", "content": "a <align> b"}]}, "literal <align>"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "leaves no room for an answer"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_name(fields, told, client, ask):
    body = {"messages": ask("What is this?", 1), **fields}
    messages = body.pop("messages")
    with pytest.raises(openai.BadRequestError, match=told):
        complete(client, messages, extra_body=body)


def test_a_model_of_another_name_is_not_found(client, ask):
    with pytest.raises(openai.NotFoundError, match="This server has 'tiny', not 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=ask("What?"))


def test_fields_that_ask_for_what_is_done_anyway_are_taken(client, ask, alone):
    found = complete(client, ask("What is this?", 1), n=1, user="me", frequency_penalty=0, tools=[], logit_bias={})
    assert found.choices[0].message.content == alone("What is this?", 1)[0]


def test_too_many_pictures_are_refused(serve, ask):
    with serve(max_images=2) as client:
        complete(client, ask("Which?", 1, 2))
        with pytest.raises(openai.BadRequestError, match="There are 3 pictures; 2 are allowed"):
            complete(client, ask("Which?", 1, 2, 3))


def test_a_client_without_the_key_learns_nothing_but_that_the_server_runs(serve, ask):
    with serve(key="right", api_key="secret") as client:
        for call in (lambda: complete(client, ask("What?")), client.models.list):
            with pytest.raises(openai.AuthenticationError, match="needs its API key"):
                call()
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        complete(client.with_options(api_key="secret"), ask("What?"))


def post(client, body, headers=None, path="/v1/chat/completions"):
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'"text"', b"", b"null", b'{"messages": NaN}'])
def test_a_malformed_body_is_told_in_openai_s_form(body, client):
    status, told = post(client, body)
    assert status == 400 and told["error"]["type"] == "invalid_request_error"


def test_an_oversized_body_is_refused_before_it_is_read(serve):
    with serve(max_body_bytes=1000) as client:
        status, told = post(client, b"x" * 2000)
        assert (status, told["error"]["code"]) == (413, "body_too_large")
        # Without a length, as chunks
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
        connection.request(
            "POST", "/v1/chat/completions", iter([b"x" * 400] * 8), {"Content-Type": "application/json"}
        )
        assert connection.getresponse().status == 413


def test_a_slow_body_does_not_keep_others_waiting_and_is_ended(serve, ask):
    with (
        serve(body_timeout=1) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as slow,
    ):
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        complete(client, ask("What?"))
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_goes_away_leaves_room_for_the_others(serve, ask, monkeypatch):
    started, go_on, asked = threading.Event(), threading.Event(), []
    generate = Assistant.generate

    def wait(self, inputs, *args, **kwargs):
        started.set()
        asked.append(inputs["input_ids"].shape[1])
        go_on.wait(30)
        return generate(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Assistant, "generate", wait)
    with serve(max_batch_size=1, max_waiting=1) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(complete, client, ask("What is this?"))
        started.wait(10)
        with pytest.raises(openai.APITimeoutError):
            complete(client.with_options(timeout=0.3), ask("And this, which nobody waits for?"))
        # The server looks twice a second whether a client is there
        time.sleep(1.5)
        third = pool.submit(complete, client, ask("Again?"))
        time.sleep(0.3)
        go_on.set()
        assert first.result() and third.result(), "not told to come again"
    assert len(asked) == 2, "the one that nobody waits for was not answered"


@pytest.mark.parametrize("interface", ["chat", "responses"])
def test_a_stream_that_nobody_reads_any_more_is_not_gone_on_with(interface, serve, ask, monkeypatch):
    ended = []
    end = Row.end
    monkeypatch.setattr(Row, "end", lambda self, *args: (ended.append(self.total_tokens), end(self, *args))[1])
    with serve(sampling=Sampling(max_new_tokens=450)) as client:
        if interface == "chat":
            stream = complete(client, ask("What is this?", 1), stream=True)
        else:
            stream = client.responses.create(model="tiny", input="What is this?", stream=True)
        for _ in range(6):
            next(iter(stream))
        stream.close()
        complete(client, ask("What?"), max_tokens=1)
    assert ended[0] < 400


def test_who_comes_when_too_many_wait_is_told_to_come_again(serve, ask, monkeypatch):
    go_on = threading.Event()
    generate = Assistant.generate
    monkeypatch.setattr(Assistant, "generate", lambda self, *a, **k: go_on.wait(30) and generate(self, *a, **k))
    with serve(max_batch_size=1, max_waiting=1) as client, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(complete, client, ask("What?")) for _ in range(3)]
        while not any(call.done() for call in calls):
            time.sleep(0.01)
        go_on.set()
        errors = [error for call in calls if (error := call.exception()) is not None]
    assert [error.status_code for error in errors] == [503]
    assert errors[0].response.headers["retry-after"] == "5"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_breaks_the_model_does_not_break_the_others(stream, serve, ask, alone, monkeypatch):
    generate = Assistant.generate

    def break_on_three(self, inputs, *args, **kwargs):
        if (inputs["input_ids"] == self.processor.tokenizer.convert_tokens_to_ids("3")).any():
            raise RuntimeError('no "luck"')
        return generate(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Assistant, "generate", break_on_three)

    def one(client, number):
        found = complete(client, ask(f"What is {number}?"), stream=stream)
        return "".join(chunk.choices[0].delta.content or "" for chunk in found) if stream else found.choices[0].message

    with serve() as client, ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(one, client, number) for number in range(6)]
        failed = {number: error for number, call in enumerate(calls) if (error := call.exception()) is not None}
        assert [*failed] == [3], failed
        assert isinstance(calls[3].exception(), openai.APIError)
        complete(client, ask("What now?"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_urls": "some"}, "--image_urls some"),
        ({"max_batch_size": 0}, "--max_batch_size 0"),
        ({"port": 99999}, "--port 99999"),
        ({"chat_template_kwargs": "[]"}, "--chat_template_kwargs"),
        ({"chat_template_kwargs": "{"}, "--chat_template_kwargs"),
        ({"api_key": ""}, "--api_key is empty"),
        ({"temperature": -1.0}, "--temperature"),
    ],
)
def test_arguments_that_mean_nothing_are_told(options, told):
    (problem,) = find_problems(ServeArguments(model="m", **options))
    assert told in problem


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded():
    with bind("127.0.0.1", 0) as listening:
        listening.listen()
        port = listening.getsockname()[1]
        assert address_of(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(Mistakes, match=f"--port {port}: the server cannot listen there: Address already in use"):
            bind("127.0.0.1", port)
    for host, port in (("203.0.113.7", 0), ("nowhere.invalid", 80)):
        with pytest.raises(Mistakes, match="cannot listen there"):
            bind(host, port)


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.com", "192.168.1.1")))
