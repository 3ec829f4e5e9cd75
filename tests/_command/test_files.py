"""Names of files that records get by default."""

from steppe._command.files import named_after


def test_a_name_is_another_wherever_the_command_is() -> None:
    assert named_after(["./gpt2", "arc_easy", "q.jsonl"], {"limit": 20}) == "gpt2-arc_easy-q.jsonl-limit-20"
    assert named_after(["cnn", "sam"], {"shape": (3, 8, 8)}) == "cnn-sam-shape-3-8-8"
    bare = [named_after(["gpt2", "q.jsonl"], {"delimiter": each}) for each in ("\n", " ", "\nAnswer: ", "Answer:")]
    many = [named_after(["gpt2", *(f"task_{i}" for i in range(count))], {}) for count in (60, 61)]
    assert len({*bare, *many}) == 6 and all(len(each) < 130 and "/" not in each for each in (*bare, *many))
