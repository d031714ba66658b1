// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IVotes} from "@openzeppelin/contracts/governance/utils/IVotes.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

import {IPaymentChannels} from "../../src/interfaces/IPaymentChannels.sol";
import {IStakeRegistry} from "../../src/interfaces/IStakeRegistry.sol";
import {Keys} from "./Keys.sol";

interface IOcto is IERC20Metadata, IERC20Permit, IVotes {}

interface IOctoA is IERC20Metadata, IERC20Permit {
    function burn(uint256 amount) external;
    function burnFrom(address holder, uint256 amount) external;
}

/// @title Deploys the committed artefacts: what is tested is what ships, byte for byte
/// @dev And it is faster: tests compile without the IR pipeline, which would take them a minute. After a change in src/,
/// build the artefacts first (`node build.mjs`).
abstract contract Shipped is Keys {
    function deployOcto() internal returns (IOcto) {
        return IOcto(deploy("Octo", ""));
    }

    function deployOctoA() internal returns (IOctoA) {
        return IOctoA(deploy("OctoA", ""));
    }

    function deployChannels(IOcto token, string memory network, uint64 challengePeriod)
        internal
        returns (IPaymentChannels)
    {
        return IPaymentChannels(deploy("PaymentChannels", abi.encode(token, network, challengePeriod)));
    }

    function deployRegistry(IOctoA token, string memory network) internal returns (IStakeRegistry) {
        return IStakeRegistry(deploy("StakeRegistry", abi.encode(token, network)));
    }

    function deploy(string memory name, bytes memory arguments) private returns (address made) {
        string memory artifact = vm.readFile(string.concat("artifacts/", name, ".json"));
        bytes memory code = bytes.concat(vm.parseJsonBytes(artifact, ".bytecode"), arguments);
        assembly ("memory-safe") {
            made := create(0, add(code, 0x20), mload(code))
            if iszero(made) {
                let free := mload(0x40)
                returndatacopy(free, 0, returndatasize())
                revert(free, returndatasize())
            }
        }
    }
}
