"""The contract's methods: message in, domain call, message out."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext

from service.api.convert import (
    classifiers_to_proto,
    classify_response_to_proto,
    conversation_from_proto,
    fan_out_response_to_proto,
)
from service.classify import Classify
from service.errors import ClassifierNameMissingError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceServicer
from service.request_id import request_id

Context = ServicerContext[Any, Any]


class ClassificationServicer(ClassificationServiceServicer):
    """`max_turns`: beyond which a conversation is refused."""

    def __init__(self, classify: Classify, max_turns: int) -> None:
        self._classify = classify
        self._max_turns = max_turns

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        conversation = conversation_from_proto(request.conversation, self._max_turns)
        return classify_response_to_proto(*await self._classify.one(conversation, request.classifier))

    async def FanOut(self, request: pb.FanOutRequest, context: Context) -> pb.FanOutResponse:
        conversation = conversation_from_proto(request.conversation, self._max_turns)
        return fan_out_response_to_proto(await self._classify.fan_out(conversation, request.classifiers), request_id())

    async def ListClassifiers(self, request: pb.ListClassifiersRequest, context: Context) -> pb.ListClassifiersResponse:
        return pb.ListClassifiersResponse(classifiers=classifiers_to_proto(self._classify.registry.select(())))

    async def GetClassifier(self, request: pb.GetClassifierRequest, context: Context) -> pb.GetClassifierResponse:
        if not request.classifier:
            raise ClassifierNameMissingError("Name the classifier; ListClassifiers names them all.", "classifier")
        (found,) = classifiers_to_proto([self._classify.registry.get(request.classifier)])
        return pb.GetClassifierResponse(classifier=found)
