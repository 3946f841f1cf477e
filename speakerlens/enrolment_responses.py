"""From the messages of a server to the results about enrolled speakers and galleries."""

from dataclasses import replace

from speakerlens.enrolment_results import (
    EnrolledModel,
    EnrolledSpeaker,
    EnrolledUtterance,
    GalleryImport,
    GalleryMigration,
)
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.responses import audio_info


def new_enrolment(answer: pb.EnrollResponse) -> EnrolledSpeaker:
    """Read a new enrolment."""
    utterances = [
        EnrolledUtterance(audio_info(each.audio), each.agreement, each.recording) for each in answer.utterances
    ]
    return replace(
        enrolled_speaker(answer.speaker),
        without_speech=tuple(answer.without_speech),
        utterances=tuple(utterances),
    )


def gallery_import(answer: pb.ImportGalleryResponse) -> GalleryImport:
    """Read what an import stored."""
    return GalleryImport(answer.speakers, answer.exemplars)


def gallery_migration(answer: pb.MigrateGalleryResponse) -> GalleryMigration:
    """Read what came of a migration."""
    return GalleryMigration(answer.migrated, tuple(answer.must_enroll_again))


def enrolled_speaker(message: pb.EnrolledSpeaker) -> EnrolledSpeaker:
    """Read an enrolled speaker."""
    models = (
        EnrolledModel(
            each.variant,
            each.version,
            each.utterances,
            each.enrolled,
            each.usable,
            each.exemplars,
            each.must_enroll_again,
        )
        for each in message.models
    )
    return EnrolledSpeaker(message.speaker, tuple(models))


def speakers_page(answer: pb.ListSpeakersResponse) -> tuple[list[EnrolledSpeaker], str]:
    """Read one page of the enrolled speakers, and the token of the next page: empty after the last."""
    return [enrolled_speaker(each) for each in answer.speakers], answer.next_page_token
