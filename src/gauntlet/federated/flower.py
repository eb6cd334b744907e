"""The round loop driven by Flower: its server, its strategy and its client proxies, in this process.

Beutel et al. 2020, arXiv:2007.14390. Flower's own simulation engine starts ray workers, to which neither the network on
the device nor the wall between the players could be handed; so the users are client proxies that train here, one after
the other, and everything between server and users is Flower's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.federated.rounds import Federated, moved

__all__ = ["available", "flower"]


def available() -> bool:
    """Whether Flower is installed."""
    try:
        import flwr  # noqa: F401
    except ImportError:
        return False
    return True


def flower(federated: Federated) -> Iterator[Tensor]:
    """As `gauntlet.federated.rounds.in_process`, with all rounds run before the first state is given.

    SettingError when Flower is not installed.
    """
    if not available():
        raise SettingError("backend = 'flower' needs Flower; install 'backdoor-gauntlet[federated]'")
    from flwr.server import Server, SimpleClientManager

    states: list[Tensor] = []
    strategy = _strategy(federated, states)
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    # Users that train side by side would share one network and torch's one generator.
    server.set_max_workers(1)
    server.fit(federated.rounds, timeout=None)
    yield from states


def _strategy(federated: Federated, states: list[Tensor]) -> Any:
    """A Flower strategy that samples the federation's users and takes its aggregate; `states` gets each round's."""
    from flwr.common import FitIns, FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.client_manager import ClientManager
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.strategy import FedAvg

    device = federated.start.device

    def packed(state: Tensor) -> Parameters:
        return ndarrays_to_parameters([state.cpu().numpy()])

    class Strategy(FedAvg):  # type: ignore[misc, unused-ignore]
        def configure_fit(
            self, server_round: int, parameters: Parameters, client_manager: ClientManager
        ) -> list[tuple[ClientProxy, FitIns]]:
            del client_manager
            order = FitIns(parameters, {"round": server_round})
            return [(_user(federated, user), order) for user in federated.sample(server_round)]

        def aggregate_fit(
            self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Any]
        ) -> tuple[Parameters, dict[str, Any]]:
            for failure in failures:
                raise failure if isinstance(failure, BaseException) else RuntimeError(str(failure))
            # Flower gives the results in any order.
            ordered = sorted(results, key=lambda result: int(result[0].cid))
            arrays = [parameters_to_ndarrays(result.parameters)[0] for _, result in ordered]
            updates = torch.from_numpy(np.stack(arrays)).to(device)
            before = states[-1] if states else federated.start
            states.append(moved(federated, server_round, before, updates))
            return packed(states[-1]), {}

    return Strategy(fraction_evaluate=0.0, initial_parameters=packed(federated.start))


def _user(federated: Federated, user: int) -> Any:
    """A Flower client proxy: this user, training here."""
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.client_proxy import ClientProxy

    class User(ClientProxy):  # type: ignore[misc, unused-ignore]
        def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
            del timeout, group_id
            # A copy: what was unpacked can't be written to.
            state = torch.from_numpy(parameters_to_ndarrays(ins.parameters)[0].copy()).to(federated.start.device)
            update = federated.update(int(ins.config["round"]), user, state)
            sent = ndarrays_to_parameters([update.cpu().numpy()])
            return FitRes(Status(Code.OK, ""), sent, num_examples=1, metrics={})

        def get_properties(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            raise NotImplementedError

        def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            raise NotImplementedError

        def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            raise NotImplementedError

        def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            raise NotImplementedError

    return User(str(user))
