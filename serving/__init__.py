"""Talk to a model: in a terminal, over a server with OpenAI's interface, on a page; and many questions at once."""
