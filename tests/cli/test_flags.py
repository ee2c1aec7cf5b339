"""What the library says, in the words of the command line."""

import pytest

from captioner.cli.flags import with_flags


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("temperature must be above 0.", "--temperature must be above 0."),
        (
            "top_k and seed would change nothing: this is a search.",
            "--top-k and --seed would change nothing: this is a search.",
        ),
        (
            "recursive and batch_size would change nothing: these are texts.",
            "--recursive and --batch-size would change nothing: these are texts.",
        ),
        ("Set do_sample to false.", "Say --no-do-sample."),
        ("raise num_beams, or set do_sample.", "raise --num-beams, or say --do-sample."),
        (
            "a.png has 9 pixels. If you trust it, raise max_pixels.",
            "a.png has 9 pixels. If you trust it, raise --max-pixels.",
        ),
        ("a holds no pictures. Set recursive to look below.", "a holds no pictures. Add --recursive to look below."),
        ("Stopped. The same again with resume goes on.", "Stopped. The same again with --resume goes on."),
        ("k must be at least 1.", "--k must be at least 1."),
        ("Build it of more pictures, or set k to 7 or less.", "Build it of more pictures, or set --k to 7 or less."),
        ("name one more list as terms.", "name one more list with --terms FILE."),
        ("Leave embedder out, or train it anew.", "Leave --embedder out, or train it anew."),
        ("use fewer beams, precision bf16 or less", "use fewer beams, --precision bf16 or less"),
        (
            "a.csv is already there: set resume to go on, or set overwrite to replace it.",
            "a.csv is already there: add --resume to go on, or add --overwrite to replace it.",
        ),
        (
            "Give the same again, set overwrite instead of resume to start anew, or name another output.",
            "Give the same again, add --overwrite instead of --resume to start anew, or name another --out.",
        ),
        ("photos cannot be written to: name an output instead.", "photos cannot be written to: name an --out instead."),
        ("overwrite does not empty a folder.", "--overwrite does not empty a folder."),
        ("mini has no use for question: leave it out.", "mini has no use for --question: leave it out."),
        ("split and image_column would change nothing: a", "--split and --image-column would change nothing: a"),
        ("Rename one, or say which with text_column.", "Rename one, or say which with --text-column."),
        ("use precision bf16; there is load_in 8bit.", "use --precision bf16; there is --load-in 8bit."),
        ("If you trust it, set trust_remote_code.", "If you trust it, add --trust-remote-code."),
        (
            "attention is about what the model says: leave out metadata.",
            "--attention is about what the model says: leave out --metadata.",
        ),
        ("by metadata only no model is asked", "by --metadata only no model is asked"),
        (
            "embedder would change nothing: set embed or consensus.",
            "--embedder would change nothing: add --embed or --consensus.",
        ),
        (
            "a.csv was begun with other settings: clean was not given and is now false; forbid was not given and is "
            'now ["seed"]; seed was 1 and is now not given. Give the same again.',
            "a.csv was begun with other settings: --raw was not given and now is; --forbid was not given and is now "
            '["seed"]; --seed was 1 and is now not given. Give the same again.',
        ),
        (
            "run was begun with other settings: clean was false and is now not given. Give the same.",
            "run was begun with other settings: --raw was given and now is not. Give the same.",
        ),
        ("set normalize to true or false.", "say --normalize or --no-normalize."),
        ("name the one that makes them as clip.", "name the one that makes them with --clip."),
        ("Or give lists of your own as terms.", "Or give lists of your own with --terms FILE."),
    ],
)
def test_settings_are_named_as_they_are_typed(message: str, shown: str) -> None:
    assert with_flags(message) == shown


@pytest.mark.parametrize(
    "message",
    [
        "The prompt of my_model/num_beams.json",
        "--recursive and --seed would change nothing: run holds a plan.",
        "t.csv has no caption column 'text'. The columns are: 'text_column', 'batch_size', \"top_k's\".",
        "photos as clip/a.png is damaged.",
        "metadata only/a.png is damaged.",
        "a picture or a file does not exist.",
        "There is no folder as terms: make it first.",
        "leave out metadata/set embed or consensus/a.png is no picture.",
    ],
)
def test_flags_and_names_of_files_and_columns_are_left_as_they_are(message: str) -> None:
    assert with_flags(message) == message
