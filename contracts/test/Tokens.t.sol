// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Market} from "./utils/Market.sol";

contract TokensTest is Market {
    function test_supplyIsTenBillionAndAllTheDeployers() external view {
        vm.assertEq(octo.totalSupply(), 10 ** 28);
        vm.assertEq(octoA.totalSupply(), 10 ** 28);
        vm.assertEq(octo.balanceOf(address(this)), 10 ** 28 - 1_000_000 ether);
        vm.assertEq(octoA.balanceOf(address(this)), 10 ** 28 - 100_000 ether);
        vm.assertTrue(octo.totalSupply() < type(uint96).max / 7);
    }

    function test_namesAndDecimals() external view {
        vm.assertEq(octo.name(), "OCTO");
        vm.assertEq(octo.symbol(), "OCTO");
        vm.assertEq(octo.decimals(), 18);
        vm.assertEq(octoA.name(), "OCTO-A");
        vm.assertEq(octoA.symbol(), "OCTO-A");
        vm.assertEq(octoA.decimals(), 18);
    }

    function test_octoVotesFollowTheirDelegate() external {
        vm.prank(payer);
        octo.delegate(STRANGER);
        vm.assertEq(octo.getVotes(STRANGER), 1_000_000 ether);
        vm.prank(payer);
        octo.transfer(PAYEE, 400_000 ether);
        vm.assertEq(octo.getVotes(STRANGER), 600_000 ether);
    }

    function test_holdersBurnTheirOwnOctoA() external {
        vm.prank(PROVIDER);
        octoA.burn(1 ether);
        vm.assertEq(octoA.totalSupply(), 10 ** 28 - 1 ether);
        vm.expectRevert(
            abi.encodeWithSignature("ERC20InsufficientAllowance(address,uint256,uint256)", address(this), 0, 1)
        );
        octoA.burnFrom(PROVIDER, 1);
    }
}
