"""Sound and images of real files on one clock, whatever container, codec or damage."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from models.media.images import BT2020_TO_BT709
from models.media.tracks import downmix
from models.media.video import AudioTrack, Damage, Frame, VideoError, decode, read_video
from tests.support.videos import FLASHES_S, flashes, write_flashes, write_video

RATE = 16000


def times(path, **options):
    """Return the times of flashes and of clicks, and the reasons of damage."""
    items = list(decode(path, sample_rate=RATE, frames_per_s=1000, **options))
    sounds = [item for item in items if isinstance(item, AudioTrack)]
    samples = downmix(np.concatenate([item.samples for item in sounds], -1))
    loud = np.flatnonzero(np.abs(samples) > 0.3) / RATE + sounds[0].time_s
    clicks = [t for before, t in zip([-9.0, *loud], loud, strict=False) if t - before > 1]
    frames = [(item.time_s, np.asarray(item.image).mean() > 128) for item in items if isinstance(item, Frame)]
    lit = [t for (_, before), (t, now) in zip([(0, False), *frames], frames, strict=False) if now > before]
    return lit, clicks, [item.reason for item in items if isinstance(item, Damage)]


FORMS = {
    "mp4": ("libx264", "aac", None, {}),
    "mov": ("libx264", "pcm_f32le", None, {}),
    "mkv": ("libx265", "flac", None, {}),
    "webm": ("libvpx-vp9", "libopus", None, {}),
    "avi": ("mpeg4", "libmp3lame", None, {}),
    "ts": ("libx264", "aac", "mpegts", {}),
    "mts": ("mpeg2video", "ac3", "mpegts", {}),
    "m4v": ("libx264", "aac", "mp4", {}),
    "mpg": ("mpeg2video", "mp2", "mpeg", {}),
    "vob": ("mpeg2video", "ac3", "vob", {}),
    "wmv": ("wmv2", "wmav2", "asf", {"rate": 44100}),
    "flv": ("flv", "libmp3lame", None, {"rate": 44100}),
    "3gp": ("mpeg4", "aac", "3gp", {}),
    "mxf": ("mpeg2video", "pcm_s16le", "mxf", {}),
    "nut": ("mjpeg", "libmp3lame", None, {}),
}


@pytest.mark.parametrize("suffix", FORMS)
def test_flash_and_click_coincide_in_every_container(tmp_path, suffix):
    video, audio, form, options = FORMS[suffix]
    path = write_flashes(tmp_path / f"x.{suffix}", video=video, audio=audio, format=form, **options)
    lit, clicks, damage = times(path)
    assert len(lit) == len(clicks) == 2
    np.testing.assert_allclose(lit, clicks, atol=0.06)
    assert damage == []


@pytest.mark.parametrize(
    ("suffix", "audio"), [("mp4", "aac"), ("mkv", "libopus"), ("ts", "aac"), ("flv", "aac")]
)
def test_a_gap_in_the_sound_stays_a_gap(tmp_path, suffix, audio):
    form = "mpegts" if suffix == "ts" else None
    path = write_flashes(
        tmp_path / f"x.{suffix}", audio=audio, format=form, rate=48000, keep=lambda t: not 1.3 <= t < 2.5
    )
    lit, clicks, _ = times(path)
    np.testing.assert_allclose(lit, clicks, atol=0.06)


@pytest.mark.parametrize(("shift_s", "apart_s"), [(2.0, 2.0), (1.8, 1.8), (0.0, 2.0)])
def test_the_sound_may_change_its_format_in_a_file(tmp_path, shift_s, apart_s):
    first = write_flashes(tmp_path / "1.ts", format="mpegts", seconds=2.0)
    sound = np.stack([flashes(2.0, 44100)] * 2)
    second = write_flashes(
        tmp_path / "2.ts", format="mpegts", seconds=2.0, rate=44100, channels=sound, start_s=shift_s
    )
    both = tmp_path / "both.mp4"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    lit, clicks, _ = times(both)
    assert len(lit) == 2
    np.testing.assert_allclose(lit, clicks, atol=0.06)
    assert lit[1] - lit[0] == pytest.approx(apart_s, abs=0.1)


# ------------------------------------------------------------------------------------------- images


def write_images(path, image, *, format=None, **options):
    """Write two seconds of an image with noise as sound; set the attributes in `options` of its stream."""
    with av.open(str(path), "w", format=format) as container:
        images = container.add_stream("libx264", rate=5)
        images.width, images.height = image.size
        images.pix_fmt = options.pop("pix_fmt", "yuv420p")
        rotation = options.pop("rotation", None)
        if rotation:
            images.set_display_rotation(rotation[0], hflip=rotation[1])
        for name, value in options.items():
            setattr(images.codec_context, name, value)
        track = container.add_stream("aac", rate=RATE, layout="mono")
        for n in range(10):
            frame = av.VideoFrame.from_image(image)
            frame.pts = n
            container.mux(images.encode(frame))
        noise = 0.1 * np.random.default_rng(0).standard_normal((1, 2 * RATE)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
        sound.sample_rate, sound.pts = RATE, 0
        container.mux(track.encode(sound))
        for stream in (images, track):
            container.mux(stream.encode(None))
    return path


def quarters():
    """Return an image of 80 x 40: red and green above, blue and white below."""
    image = Image.new("RGB", (80, 40), "white")
    image.paste("red", (0, 0, 40, 20))
    image.paste("lime", (40, 0, 80, 20))
    image.paste("blue", (0, 20, 40, 40))
    return image


def corners(image):
    """Return the colours at the four corners, row by row, as r, g, b or w."""
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    x, y = image.width // 4, image.height // 4
    places = [(x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y)]
    return "".join(names[tuple(int(v > 128) for v in image.getpixel(place))] for place in places)


@pytest.mark.parametrize(
    ("degrees", "flip", "expected", "size"),
    [
        (0, True, "grwb", (80, 40)),
        (90, False, "gwrb", (40, 80)),
        (180, False, "wbgr", (80, 40)),
        (270, False, "brwg", (40, 80)),
        (90, True, "wgbr", (40, 80)),
    ],
)
def test_turned_and_mirrored_images_are_upright(tmp_path, degrees, flip, expected, size):
    path = write_images(tmp_path / "x.mp4", quarters(), rotation=(degrees, flip))
    image = read_video(path, sample_rate=RATE).frames[0].image
    assert (corners(image), image.size) == (expected, size)


@pytest.mark.parametrize(("aspect", "size"), [((2, 1), (160, 40)), ((1, 2), (80, 80)), ((1000, 1), (80, 40))])
def test_pixels_become_square(tmp_path, aspect, size):
    path = write_images(tmp_path / "x.mkv", quarters(), sample_aspect_ratio=Fraction(*aspect))
    assert read_video(path, sample_rate=RATE).frames[0].image.size == size


def test_large_images_are_reduced(tmp_path):
    path = write_images(tmp_path / "x.mp4", quarters().resize((1600, 800)))
    image = read_video(path, sample_rate=RATE).frames[0].image
    assert (corners(image), image.size) == ("rgbw", (512, 256))


def test_hdr_looks_like_the_standard_range(tmp_path):
    grey = np.full((40, 80, 3), 119, np.uint8)
    grey[:, 40:] = (200, 60, 40)
    linear = np.where(grey > 10, ((grey / 255 + 0.055) / 1.055) ** 2.4, grey / 255 / 12.92)
    light = np.clip(linear @ np.linalg.inv(BT2020_TO_BT709).T, 0, 1) * 203 / 10000
    power = light**0.1593017578125
    signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    path = write_images(
        tmp_path / "x.mp4",
        Image.fromarray((255 * signal).round().astype(np.uint8)),
        color_trc=16,
        color_primaries=9,
    )
    image = np.asarray(read_video(path, sample_rate=RATE).frames[0].image, float)
    for x in (20, 60):
        np.testing.assert_allclose(image[20, x], grey[20, x], atol=12)


def write_blue(container, images):
    for n in range(5):
        image = av.VideoFrame.from_image(Image.new("RGB", (64, 64), "blue"))
        image.pts = n
        container.mux(images.encode(image))


def test_a_cover_is_no_video(tmp_path):
    path = tmp_path / "x.mp4"
    for moving in (True, False):
        with av.open(str(path), "w") as container:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            if moving:
                images = container.add_stream("libx264", rate=5)
                images.width = images.height = 64
            track = container.add_stream("alac", rate=RATE, layout="mono")
            picture = av.VideoFrame.from_image(Image.new("RGB", (640, 480), "red"))
            picture.pts = 0
            container.mux(cover.encode(picture))
            if moving:
                write_blue(container, images)
            noise = np.random.default_rng(0).integers(-3000, 3000, (1, RATE)).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(noise, "s16p", "mono")
            sound.sample_rate, sound.pts = RATE, 0
            container.mux(track.encode(sound))
            for stream in (cover, *([images] if moving else []), track):
                container.mux(stream.encode(None))
        if moving:
            assert read_video(path, sample_rate=RATE).frames[0].image.getpixel((9, 9))[2] > 200
        else:
            with pytest.raises(VideoError, match="no image"):
                read_video(path, sample_rate=RATE)


# -------------------------------------------------------------------------------------------- sound


def test_channels_of_opposite_phase_do_not_cancel(tmp_path):
    sound = flashes()
    path = write_flashes(tmp_path / "x.mp4", channels=np.stack([sound, -sound]))
    assert times(path)[1] == pytest.approx(FLASHES_S, abs=0.06)


def test_a_mix_keeps_both_channels_unless_they_cancel():
    a, b = np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32)
    np.testing.assert_allclose(downmix(np.stack([a, b])), (a + b) / 2, atol=1e-6)
    np.testing.assert_allclose(downmix(np.stack([a, 0 * a])), a / 2, atol=1e-6)
    np.testing.assert_allclose(downmix(np.stack([a, -0.9 * a])), a)


def write_tracks(path, sounds, default):
    """Write a second with several sound tracks (T,)."""
    with av.open(str(path), "w") as container:
        images = container.add_stream("libx264", rate=5)
        images.width = images.height = 64
        tracks = [container.add_stream("flac", rate=RATE, layout="mono") for _ in sounds]
        for n, track in enumerate(tracks):
            track.disposition = Disposition.default if n == default else Disposition(0)
        write_blue(container, images)
        for track, samples in zip(tracks, sounds, strict=True):
            sound = av.AudioFrame.from_ndarray((9000 * samples[None]).astype(np.int16), "s16", "mono")
            sound.sample_rate, sound.pts = RATE, 0
            container.mux(track.encode(sound))
        for stream in (images, *tracks):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "heard_hz"), [(1, 440), (2, 880), (0, 440)])
def test_the_default_or_first_sounding_track_is_heard(tmp_path, default, heard_hz):
    tones = [np.sin(2 * np.pi * hz * np.arange(RATE) / RATE) for hz in (0, 440, 880)]
    path = write_tracks(tmp_path / "x.mkv", tones, default)
    wave = read_video(path, sample_rate=RATE).waveform
    assert np.abs(np.fft.rfft(wave[:RATE])).argmax() == heard_hz


def test_a_video_with_only_silent_tracks_is_silent(tmp_path):
    path = write_tracks(tmp_path / "x.mkv", [np.zeros(RATE)] * 2, 0)
    with pytest.raises(VideoError, match="silent"):
        read_video(path, sample_rate=RATE)


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv", "avi"])
def test_damage_in_the_middle_keeps_the_rest(tmp_path, suffix):
    audio, form = ("libmp3lame", "avi") if suffix == "avi" else ("aac", "mpegts" if suffix == "ts" else None)
    video = "mpeg4" if suffix == "avi" else "libx264"
    data = bytearray(
        write_flashes(tmp_path / f"x.{suffix}", video=video, audio=audio, format=form).read_bytes()
    )
    middle = len(data) // 3
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path = tmp_path / f"y.{suffix}"
    path.write_bytes(data)
    lit, clicks, _ = times(path)
    assert len(lit) == 2
    np.testing.assert_allclose(lit, clicks, atol=0.06)


def test_a_name_may_be_no_utf_8(tmp_path):
    path = write_video(tmp_path / "x.mp4", seconds=1.0)
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.rename(odd)
    assert len(read_video(odd, sample_rate=RATE).frames) == 1


def test_a_video_may_not_refer_to_other_files(tmp_path):
    write_video(tmp_path / "x.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/x.mp4\n")
    (tmp_path / "concat.mkv").write_text("ffconcat version 1.0\nfile x.mp4\n")
    for name in ("list.mp4", "concat.mkv"):
        with pytest.raises(VideoError, match=r"cannot be decoded|list of other"):
            read_video(tmp_path / name, sample_rate=RATE)


def test_decoded_sound_and_frames_share_a_clock(videos):
    items = list(decode(videos / "0.mp4", sample_rate=RATE, frames_per_s=3.0))
    shown = [item.time_s for item in items if isinstance(item, Frame)]
    np.testing.assert_allclose(shown, np.arange(6) / 3, atol=0.02)
    heard = sum(item.samples.shape[-1] for item in items if isinstance(item, AudioTrack))
    assert heard == pytest.approx(2 * RATE, abs=1100)  # AAC pads to whole frames
