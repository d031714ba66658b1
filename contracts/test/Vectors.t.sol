// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {IOcto, IOctoA, Shipped} from "./utils/Shipped.sol";

/// @title The same digests as Python's: tests/vectors/chain.json, which pytest reads as well
/// @dev The contracts are moved to the addresses and chains that the vectors name.
contract VectorsTest is Shipped {
    string private json = vm.readFile("../tests/vectors/chain.json");

    function test_vouchers() external {
        uint256 i;
        for (; has("vouchers", i); i++) {
            vm.chainId(number("vouchers", i, "chainId"));
            address escrow = account("vouchers", i, "escrow");
            IPaymentChannels made = deployChannels(IOcto(address(1)), text("vouchers", i, "network"), 1 days);
            vm.etch(escrow, address(made).code);
            IPaymentChannels channels = IPaymentChannels(escrow);
            bytes32 id = channels.channelIdOf(
                IPaymentChannels.Terms(
                    account("vouchers", i, "payer"),
                    account("vouchers", i, "payee"),
                    account("vouchers", i, "sessionKey"),
                    word("vouchers", i, "salt")
                )
            );
            bytes32 digest = channels.voucherDigest(
                id, number("vouchers", i, "cumulativeAmount"), word("vouchers", i, "receiptsRoot")
            );
            vm.assertEq(id, word("vouchers", i, "channelId"), "channel id");
            vm.assertEq(channels.domainSeparator(), word("vouchers", i, "separator"), "domain");
            same("vouchers", i, digest);
        }
        vm.assertTrue(i > 5);
    }

    function test_receipts() external {
        uint256 i;
        for (; has("receipts", i); i++) {
            vm.chainId(number("receipts", i, "chainId"));
            IStakeRegistry registry = deployRegistry(IOctoA(address(1)), text("receipts", i, "network"));
            same("receipts", i, registry.receiptDigest(receipt(i)));
        }
        vm.assertTrue(i > 5);
    }

    function test_bindings() external {
        uint256 i;
        for (; has("bindings", i); i++) {
            vm.chainId(number("bindings", i, "chainId"));
            IStakeRegistry made = deployRegistry(IOctoA(address(1)), text("bindings", i, "network"));
            address registry = account("bindings", i, "registry");
            vm.etch(registry, address(made).code);
            bytes32 digest = IStakeRegistry(registry)
                .bindingDigest(
                    account("bindings", i, "staker"),
                    account("bindings", i, "receiptSigner"),
                    word("bindings", i, "peer"),
                    number("bindings", i, "nonce")
                );
            same("bindings", i, digest);
        }
        vm.assertTrue(i > 3);
    }

    /// @dev The digest is the vector's, and its compact signature recovers the vector's signer.
    function same(string memory kind, uint256 i, bytes32 digest) private view {
        vm.assertEq(digest, word(kind, i, "digest"), string.concat(kind, ": digest"));
        (bytes32 r, bytes32 vs) = (word(kind, i, "r"), word(kind, i, "vs"));
        bytes32 s = bytes32(uint256(vs) & (type(uint256).max >> 1));
        vm.assertEq(ecrecover(digest, uint8(uint256(vs) >> 255) + 27, r, s), account(kind, i, "signer"));
    }

    function receipt(uint256 i) private view returns (IStakeRegistry.Receipt memory) {
        return IStakeRegistry.Receipt({
            body: word("receipts", i, "body"),
            channel: word("receipts", i, "channel"),
            task: word("receipts", i, "task"),
            seq: uint64(number("receipts", i, "seq")),
            isFinal: vm.parseJsonBool(json, path("receipts", i, "final")),
            tokensIn: uint64(number("receipts", i, "tokensIn")),
            tokensOut: uint64(number("receipts", i, "tokensOut")),
            amount: number("receipts", i, "amount"),
            transcriptRoot: word("receipts", i, "transcriptRoot"),
            quote: word("receipts", i, "quote")
        });
    }

    function path(string memory kind, uint256 i, string memory name) private pure returns (string memory) {
        return string.concat(".", kind, "[", vm.toString(i), "].", name);
    }

    function has(string memory kind, uint256 i) private view returns (bool) {
        return vm.keyExistsJson(json, path(kind, i, "digest"));
    }

    function word(string memory kind, uint256 i, string memory name) private view returns (bytes32) {
        return vm.parseJsonBytes32(json, path(kind, i, name));
    }

    function number(string memory kind, uint256 i, string memory name) private view returns (uint256) {
        return vm.parseJsonUint(json, path(kind, i, name));
    }

    function account(string memory kind, uint256 i, string memory name) private view returns (address) {
        return vm.parseJsonAddress(json, path(kind, i, name));
    }

    function text(string memory kind, uint256 i, string memory name) private view returns (string memory) {
        return vm.parseJsonString(json, path(kind, i, name));
    }
}
