"""The contract's methods: message in, domain call, message out."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext

from service.api.convert import (
    classifier_to_proto,
    classify_response_to_proto,
    conversation_from_proto,
    conversation_problems,
    fan_out_response_to_proto,
)
from service.classify import Classify, name_problems
from service.errors import ClassifierNameMissingError, raise_all
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceServicer
from service.request_id import request_id

Context = ServicerContext[Any, Any]

NAME_IT = "Name the classifier; ListClassifiers names them all."


class ClassificationServicer(ClassificationServiceServicer):
    """`max_turns`: beyond which a conversation is refused."""

    def __init__(self, classify: Classify, max_turns: int) -> None:
        self._classify = classify
        self._max_turns = max_turns

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        missing = [] if request.classifier else [ClassifierNameMissingError(NAME_IT, "classifier")]
        raise_all([*conversation_problems(request.conversation, self._max_turns), *missing])
        conversation = conversation_from_proto(request.conversation)
        return classify_response_to_proto(*await self._classify.one(conversation, request.classifier))

    async def FanOut(self, request: pb.FanOutRequest, context: Context) -> pb.FanOutResponse:
        problems = conversation_problems(request.conversation, self._max_turns)
        raise_all([*problems, *name_problems(request.classifiers)])
        conversation = conversation_from_proto(request.conversation)
        return fan_out_response_to_proto(await self._classify.fan_out(conversation, request.classifiers), request_id())

    async def ListClassifiers(self, request: pb.ListClassifiersRequest, context: Context) -> pb.ListClassifiersResponse:
        registry = self._classify.registry
        return pb.ListClassifiersResponse(
            classifiers=[classifier_to_proto(each, registry) for each in registry.select(())]
        )

    async def GetClassifier(self, request: pb.GetClassifierRequest, context: Context) -> pb.GetClassifierResponse:
        if not request.classifier:
            raise ClassifierNameMissingError(NAME_IT, "classifier")
        registry = self._classify.registry
        found = registry.get(request.classifier)
        return pb.GetClassifierResponse(classifier=classifier_to_proto(found, registry))
