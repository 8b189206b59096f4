import json
import os

import pytest

from tests.support.vggsound import write_vggsound
from training.prepare.sources import PrepareError, find_sources


def test_lists_of_music_and_vggsound_choose_videos(tmp_path):
    for name in ("abc.mp4", "xyz_000030.mp4", "other.mp4"):
        (tmp_path / name).write_bytes(b"")
    music, vggsound = tmp_path / "MUSIC_solo_videos.json", tmp_path / "vggsound.csv"
    music.write_text(json.dumps({"videos": {"flute": ["abc", "gone"], "flute violin": ["abc"]}}))
    vggsound.write_text("xyz,30,dog barking,train\nxyz,90,dog barking,test\n")
    found = find_sources(tmp_path, music)
    assert ([s.name for s in found.videos], found.missing) == (["abc.mp4"], ["gone"])
    found = find_sources(tmp_path, vggsound)
    assert [(s.name, s.origin) for s in found.videos] == [("xyz_000030.mp4", "xyz")]
    assert found.missing == ["xyz_000090"]
    for path, text in (
        (music, "[]"),
        (music, '{"videos": {}}'),
        (vggsound, "xyz,soon\n"),
        (vggsound, "xyz,1\nxyz,b\n"),
    ):
        path.write_text(text)
        with pytest.raises(PrepareError, match=path.name):
            find_sources(tmp_path, path)


def test_names_of_vggsound_as_people_have_them(tmp_path):
    names = ("a_b-c_34.mp4", "d_118000_128000.mkv", "e_30_40.mp4", "f_000007.mp4", "g_1_000002.mp4", "h.mp4")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    listing = tmp_path / "vggsound.csv"
    rows = ["a_b-c,34", "d,118", "e,30.0", "f,7", "g_1,2", "h,5"]
    listing.write_text(
        "\ufeffYouTube ID,start seconds,label,split\n" + "".join(f"{r},x,test\n" for r in rows)
    )
    found = find_sources(tmp_path, listing)
    assert [(s.name, s.origin) for s in found.videos] == [
        ("a_b-c_34.mp4", "a_b-c"),
        ("d_118000_128000.mkv", "d"),
        ("e_30_40.mp4", "e"),
        ("f_000007.mp4", "f"),
        ("g_1_000002.mp4", "g_1"),
    ]
    assert found.missing == ["h_000005"]


def test_a_made_vggsound_has_all_its_names_and_faults(tmp_path):
    found = find_sources(tmp_path / "videos", write_vggsound(tmp_path, 20))
    assert len(found.videos) == 20
    assert len({source.origin for source in found.videos}) == 18
    assert (len(found.missing), found.ignored) == (1, {".txt": 1})
    sizes = [source.path.stat().st_size for source in found.videos]
    assert sizes.count(0) == 1
    assert len(set(sizes)) == 19


def test_every_file_is_a_video_or_counted(tmp_path):
    odd = os.fsdecode(b"caf\xe9.TS")
    for name in ("a.ts", odd, "b.wmv", "c.ogv", "notes.txt", "d.json", "e.json", "._a.mp4", "none"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    found = find_sources(tmp_path)
    assert [s.name for s in found.videos] == ["a.ts", "b.wmv", "c.ogv", odd]
    assert found.skipped == {"gone.mp4": "not a file", "pipe.mp4": "not a file"}
    assert found.ignored == {"": 1, ".json": 2, ".mp4": 1, ".txt": 1}


def test_a_folder_without_videos_is_explained(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(PrepareError, match=r"holds no videos, only other files \(1 .txt\)"):
        find_sources(tmp_path)
    with pytest.raises(PrepareError, match="is not a folder"):
        find_sources(tmp_path / "a.txt")
