// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {Market} from "./utils/Market.sol";

contract NetworkDomainTest is Market {
    bytes32 private constant TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,bytes32 salt)");

    function separator(string memory network, uint256 chainId) private pure returns (bytes32) {
        bytes32 salt = sha256(abi.encodePacked("octo/network/1", network));
        return keccak256(abi.encode(TYPEHASH, keccak256("octo"), keccak256("1"), chainId, salt));
    }

    function test_bothContractsShareTheNetworksDomain() external view {
        vm.assertEq(channels.domainSeparator(), separator("octo-test", vm.getChainId()));
        vm.assertEq(registry.domainSeparator(), channels.domainSeparator());
        vm.assertEq(registry.networkSalt(), sha256("octo/network/1octo-test"));
    }

    function testFuzz_domainFollowsTheChainIdThroughAFork(uint64 chainId) external {
        vm.chainId(chainId);
        vm.assertEq(channels.domainSeparator(), separator("octo-test", chainId));
        (,,, uint256 said,,,) = channels.eip712Domain();
        vm.assertEq(said, chainId);
    }

    function testFuzz_eachNetworkHasItsOwn(string calldata network) external {
        IPaymentChannels other = deployChannels(octo, network, PERIOD);
        vm.assertEq(other.domainSeparator(), separator(network, vm.getChainId()));
    }

    function test_walletsCanAskForIt() external view {
        (
            bytes1 fields,
            string memory name,
            string memory version,,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        ) = registry.eip712Domain();
        vm.assertEq(bytes32(fields), bytes32(bytes1(0x17))); // name, version, chainId, salt
        vm.assertEq(name, "octo");
        vm.assertEq(version, "1");
        vm.assertEq(verifyingContract, address(0));
        vm.assertEq(salt, registry.networkSalt());
        vm.assertEq(extensions.length, 0);
    }
}
