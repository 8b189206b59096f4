import json

import pytest

from training.prepare.sources import PrepareError, find_sources


def test_lists_of_music_and_vggsound_choose_videos(tmp_path):
    for name in ("abc.mp4", "xyz_000030.mp4", "other.mp4"):
        (tmp_path / name).write_bytes(b"")
    music, vggsound = tmp_path / "MUSIC_solo_videos.json", tmp_path / "vggsound.csv"
    music.write_text(json.dumps({"videos": {"flute": ["abc", "gone"], "flute violin": ["abc"]}}))
    vggsound.write_text("xyz,30,dog barking,train\nxyz,90,dog barking,test\n")
    sources, missing = find_sources(tmp_path, music)
    assert ([s.name for s in sources], missing) == (["abc.mp4"], ["gone"])
    sources, missing = find_sources(tmp_path, vggsound)
    assert ([(s.name, s.origin) for s in sources], missing) == ([("xyz_000030.mp4", "xyz")], ["xyz_000090"])
    for path, text in ((music, "[]"), (music, '{"videos": {}}'), (vggsound, "xyz,soon\n")):
        path.write_text(text)
        with pytest.raises(PrepareError, match=path.name):
            find_sources(tmp_path, path)
